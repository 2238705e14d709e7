"""URLs that carry a signature: it changes every hour, and the image stays the same."""

from __future__ import annotations

__all__ = ["without_signature"]

# Each way of signing: the parameters that show it, and all that come with it. What only begins like
# them may choose the image (`x-oss-process`), and so may a short name without the others beside
# it. From the documentation of Amazon S3 and CloudFront, Google Cloud Storage, Alibaba OSS, and
# Azure's shared access signatures.
_AZURE = (
    *("sv", "ss", "srt", "sr", "sp", "st", "se", "sip", "spr", "si", "sdd", "ses", "sig"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"),
)
_WAYS = (
    (
        {"x-amz-signature"},
        (
            *("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires"),
            *("x-amz-signedheaders", "x-amz-security-token", "x-amz-signature"),
        ),
    ),
    (
        {"x-goog-signature"},
        (
            *("x-goog-algorithm", "x-goog-credential", "x-goog-date", "x-goog-expires"),
            *("x-goog-signedheaders", "x-goog-signature"),
        ),
    ),
    (
        {"x-oss-signature"},
        (
            *("x-oss-signature-version", "x-oss-credential", "x-oss-date", "x-oss-expires"),
            *("x-oss-additional-headers", "x-oss-security-token", "x-oss-signature"),
        ),
    ),
    (
        {"signature", "awsaccesskeyid"},
        ("awsaccesskeyid", "expires", "x-amz-security-token", "signature"),
    ),
    ({"signature", "googleaccessid"}, ("googleaccessid", "expires", "signature")),
    (
        {"signature", "ossaccesskeyid"},
        ("ossaccesskeyid", "expires", "security-token", "signature"),
    ),
    (
        {"signature", "key-pair-id"},
        ("key-pair-id", "expires", "policy", "hash-algorithm", "signature"),
    ),
    ({"sig", "sv", "se", "sr"}, _AZURE),
    ({"sig", "sv", "se", "ss"}, _AZURE),
)


def without_signature(url: str) -> str:
    """Take away from a URL what only says who may read it, and until when."""
    if not url[:8].lower().startswith(("http://", "https://")):
        return url
    place, _, query = url.partition("#")[0].partition("?")
    parameters = [(part.partition("=")[0].lower(), part) for part in query.split("&")]
    names = {name for name, _ in parameters}
    signing = {part for needed, these in _WAYS if needed <= names for part in these}
    if not signing:
        return url
    kept = [part for name, part in parameters if name not in signing]
    return f"{place}?{'&'.join(kept)}" if kept else place
