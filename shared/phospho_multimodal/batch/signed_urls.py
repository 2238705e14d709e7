"""URLs that carry a signature: another one every hour, and the same picture behind it."""

from __future__ import annotations

__all__ = ["without_signature"]

# Each way of signing: the parameters that show it, and those that come with it, or how they begin.
# From the documentation of Amazon S3 and CloudFront, Google Cloud Storage, Alibaba OSS, and Azure's
# shared access signatures, whose names are so short that elsewhere they may name a picture.
_WAYS = (
    ({"x-amz-signature"}, ("x-amz-",), ()),
    ({"x-goog-signature"}, ("x-goog-",), ()),
    ({"x-oss-signature"}, ("x-oss-",), ()),
    (
        {"signature"},
        ("x-amz-security-token",),
        (
            *("signature", "expires", "policy", "key-pair-id", "hash-algorithm"),
            *("awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "security-token"),
        ),
    ),
    (
        {"sig", "sv"},
        (),
        (
            *("sig", "sv", "ss", "srt", "sr", "sp", "st", "se", "sip", "spr", "si", "sdd", "ses"),
            *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"),
        ),
    ),
)


def without_signature(url: str) -> str:
    """Take away from a URL what only says who may read it, and until when.

    Args:
        url: As it was given.

    Returns:
        The rest: two URLs of the same picture, signed at two times, have the same. A URL without a
        signature is left as it is, and so is any other text.
    """
    if not url[:8].lower().startswith(("http://", "https://")):
        return url
    place, _, query = url.partition("#")[0].partition("?")
    parameters = [(part.partition("=")[0].lower(), part) for part in query.split("&")]
    names = {name for name, _ in parameters}
    ways = [way for way in _WAYS if way[0] <= names]
    if not ways:
        return url
    beginnings = tuple(beginning for _, these, _ in ways for beginning in these)
    others = {name for _, _, these in ways for name in these}
    kept = [
        part for name, part in parameters if name not in others and not name.startswith(beginnings)
    ]
    return f"{place}?{'&'.join(kept)}"
