"""How a request travels: httpx connections, kept and reused.

`client/` and the gateway engine of the server may import this folder.
"""
