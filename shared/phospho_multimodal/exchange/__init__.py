"""What happens between a prompt and its answer: requests, retries, limits and costs, without I/O.

Each exchange is a generator of steps, which a client of `client/` carries out. Everything above
`messages/` may import this folder.
"""
