"""Certificates for certs.py, good and bad, made with python3-cryptography and the openssl command."""
import datetime, ipaddress, os, subprocess, tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as EKU, NameOID, ObjectIdentifier

UTC = datetime.timezone.utc
DOMAIN = "strata.local"
BOTH = (EKU.SERVER_AUTH, EKU.CLIENT_AUTH)


def ago(**kw):
    return datetime.datetime.now(UTC) - datetime.timedelta(**kw)


def p256():
    return ec.generate_private_key(ec.SECP256R1())


def name(cn):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else [])


class Ca:
    def __init__(self, cert, key, above=()):
        self.cert, self.key, self.above = cert, key, list(above)  # above: what must be shown with a leaf


def build(subject, key, issuer, *, san=None, eku=BOTH, ku="sign", ca=False, pathlen=None, start=None, end=None, extra=(),
          constraints=None, digest=None, aki=True, subject_name=None, san_critical=False):
    """issuer: a Ca, or None for self-signed. san: a list of GeneralNames, or None for none."""
    signer = issuer.key if issuer else key
    b = (x509.CertificateBuilder().subject_name(subject_name if subject_name is not None else name(subject))
         .issuer_name(issuer.cert.subject if issuer else name(subject)).public_key(key.public_key())
         .serial_number(x509.random_serial_number())
         .not_valid_before(start or ago(minutes=5)).not_valid_after(end or ago(days=-1)))
    if ca is not None:
        b = b.add_extension(x509.BasicConstraints(ca=ca, path_length=pathlen), critical=True)
    if ku:
        f = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                           "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
        for k in ku.split("+"):
            f[{"sign": "digital_signature", "certs": "key_cert_sign", "crl": "crl_sign", "enc": "key_encipherment"}[k]] = True
        b = b.add_extension(x509.KeyUsage(**f), critical=True)
    if eku:
        b = b.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
    if san is not None:
        b = b.add_extension(x509.SubjectAlternativeName(san), critical=san_critical)
    b = b.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if issuer and aki:
        b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    if constraints:
        b = b.add_extension(constraints, critical=True)
    for value, critical in extra:
        b = b.add_extension(value, critical=critical)
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        digest = None
    elif digest is None:
        digest = hashes.SHA256()
    return b.sign(signer, digest)


def uri(path, domain=DOMAIN):
    return x509.UniformResourceIdentifier(f"spiffe://{domain}/{path}")


def authority(subject, issuer=None, key=None, **kw):
    key = key or p256()
    kw.setdefault("ku", "certs+crl")
    kw.setdefault("ca", True)
    cert = build(subject, key, issuer, eku=None, **kw)
    above = ([cert] + issuer.above) if issuer else []
    return Ca(cert, key, above)


def load_ca(directory):
    with open(f"{directory}/ca.crt", "rb") as f:
        cert = x509.load_pem_x509_certificate(f.read())
    with open(f"{directory}/ca.key", "rb") as f:
        return Ca(cert, serialization.load_pem_private_key(f.read(), None))


def write(path, certs, key):
    with open(path + ".crt", "wb") as f:
        for c in certs:
            f.write(c if isinstance(c, bytes) else c.public_bytes(serialization.Encoding.PEM))
    fd = os.open(path + ".key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                  serialization.NoEncryption()))


def pem(der):
    import base64
    body = base64.encodebytes(der).replace(b"\n", b"")
    lines = b"\n".join(body[i:i + 64] for i in range(0, len(body), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def damaged(cert, what):
    """The same certificate with its signature's last byte changed, or its signature cut short."""
    der = bytearray(cert.public_bytes(serialization.Encoding.DER))
    if what == "flip":
        der[-1] ^= 1
    elif what == "body":  # a byte of the subject's name
        at = bytes(der).find(b"victim")
        der[at] ^= 1
    return pem(bytes(der))


def signed_sha1(issuer, key, extensions):
    """python3-cryptography signs no certificate with SHA-1 any more; the openssl command does."""
    with tempfile.TemporaryDirectory() as d:
        write(f"{d}/ca", [issuer.cert], issuer.key)
        write(f"{d}/x", [], key)
        with open(f"{d}/x.ext", "w") as f:
            f.write(extensions)
        openssl("req", "-new", "-key", f"{d}/x.key", "-subj", "/CN=victim", "-out", f"{d}/x.csr")
        openssl("x509", "-req", "-in", f"{d}/x.csr", "-days", "1", "-sha1", "-extfile", f"{d}/x.ext", "-out", f"{d}/x.crt", "-CA",
                f"{d}/ca.crt", "-CAkey", f"{d}/ca.key", "-CAcreateserial")
        with open(f"{d}/x.crt", "rb") as f:
            return x509.load_pem_x509_certificate(f.read())


def raw_extension(oid, value):
    return x509.UnrecognizedExtension(ObjectIdentifier(oid), value)


def matrix(own, foreign):
    """(name, certificates to show, key, the reason with which a coordinator refuses it; "" = lets it in)."""
    rows = []

    def row(label, reason, issuer=own, path="node/m", key=None, chain=True, **kw):
        key = key or p256()
        san = kw.pop("san", [uri(path)])
        cert = build(kw.pop("subject", "victim"), key, issuer, san=san, **kw)
        rows.append((label, [cert] + (issuer.above if issuer and chain else []), key, reason))
        return cert, key

    # controls: what must be let in, or a refusal would prove nothing
    row("good", "")
    row("good-rsa-2048", "", key=rsa.generate_private_key(65537, 2048))
    row("good-p384", "", key=ec.generate_private_key(ec.SECP384R1()))
    row("good-ed25519", "", key=ed25519.Ed25519PrivateKey.generate())
    row("good-client-only", "", eku=(EKU.CLIENT_AUTH,))
    row("good-no-eku", "", eku=None)
    row("good-more-names", "", san=[uri("node/m"), x509.DNSName("m.lab"), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))])
    row("good-spiffe-style", "", subject_name=x509.Name([]), san_critical=True)
    row("good-ends-soon", "", end=ago(minutes=-2))
    sub = authority("sub", own, pathlen=0)
    row("good-intermediate", "", issuer=sub)

    # time
    row("expired-a-second", "EXPIRED", end=ago(seconds=1))
    row("expired-a-day", "EXPIRED", start=ago(days=9), end=ago(days=1))
    row("expired-ten-years", "EXPIRED", start=ago(days=4000), end=ago(days=3650))
    row("expired-1970", "EXPIRED", start=datetime.datetime(1970, 1, 2), end=datetime.datetime(1970, 1, 3))
    row("not-yet-a-minute", "NOT_YET_VALID", start=ago(seconds=-60))
    row("not-yet-a-day", "NOT_YET_VALID", start=ago(days=-1), end=ago(days=-2))
    row("not-yet-2049", "NOT_YET_VALID", start=datetime.datetime(2049, 1, 1), end=datetime.datetime(2049, 12, 1))

    # issuer
    row("foreign-ca", "UNKNOWN_CA", issuer=foreign)
    twin = Ca(authority("t", key=foreign.key, subject_name=own.cert.subject).cert, foreign.key)
    row("twin-of-the-ca", "UNKNOWN_CA", issuer=twin)
    row("twin-without-key-id", "BAD_SIGNATURE", issuer=twin, aki=False)
    row("self-signed", "SELF_SIGNED", issuer=None)
    row("self-signed-ca", "SELF_SIGNED", issuer=None, ca=True, ku="sign+certs")
    row("self-signed-no-purpose", "SELF_SIGNED", issuer=None, eku=None, ku=None)
    row("intermediate-missing", "UNKNOWN_CA", issuer=sub, chain=False)
    row("intermediate-foreign", "UNKNOWN_CA", issuer=authority("sub", foreign))
    row("intermediate-expired", "ISSUER_EXPIRED", issuer=authority("old", own, start=ago(days=3), end=ago(days=2)))
    row("intermediate-not-yet", "ISSUER_NOT_YET_VALID", issuer=authority("young", own, start=ago(days=-1), end=ago(days=-2)))
    row("intermediate-no-ca", "NOT_A_CA", issuer=authority("leaf", own, ca=False, ku="sign"))
    row("intermediate-no-constraints", "NOT_A_CA", issuer=authority("leaf", own, ca=None, ku="sign"))
    row("intermediate-no-certsign", "NOT_A_CA", issuer=authority("mute", own, ku="crl"))
    row("path-too-long", "NOT_A_CA", issuer=authority("c", authority("b", own, pathlen=0)))
    row("path-of-the-root", "NOT_A_CA", issuer=authority("c", authority("b", own)))
    deep = own
    for i in range(6):
        deep = authority(f"level {i}", deep)
    row("chain-too-long", "CHAIN_TOO_LONG", issuer=deep)
    free = authority("free root")  # an anchor without a path length, which matrix()'s caller does not trust
    row("untrusted-deep", "UNKNOWN_CA", issuer=authority("y", authority("x", free)))
    row("intermediate-weak", "WEAK_KEY", issuer=authority("weak", own, key=rsa.generate_private_key(65537, 1024)))
    row("intermediate-shadow", "UNKNOWN_CA", issuer=Ca(sub.cert, p256(), []), chain=False)

    # signature
    cert, key = row("signature-flipped", "BAD_SIGNATURE")
    rows[-1] = ("signature-flipped", [damaged(cert, "flip")], key, "BAD_SIGNATURE")
    cert, key = row("body-changed", "BAD_SIGNATURE")
    rows[-1] = ("body-changed", [damaged(cert, "body")], key, "BAD_SIGNATURE")

    key = p256()
    rows.append(("signature-sha1", [signed_sha1(own, key, "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
                                                f"subjectAltName=URI:spiffe://{DOMAIN}/node/m\n")], key, "WEAK_SIGNATURE"))
    key = p256()
    old = Ca(signed_sha1(own, key, "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
                         "subjectKeyIdentifier=hash\n"), key)
    old.above = [old.cert]
    row("intermediate-sha1", "WEAK_SIGNATURE", issuer=old)

    # names
    bad = "NO_IDENTITY"
    row("san-none", bad, san=None)
    row("san-dns-only", bad, san=[x509.DNSName("m.strata.local")])
    row("san-email-only", bad, san=[x509.RFC822Name("m@strata.local")])
    row("san-two", bad, san=[uri("node/m"), uri("node/n")])
    row("san-twice-the-same", bad, san=[uri("node/m"), uri("node/m")])
    row("san-user-and-node", bad, san=[uri("user/admin"), uri("node/m")])
    row("san-cn-only", bad, san=None, subject="node/m")
    for label, text in {
            "san-https": "https://strata.local/node/m", "san-no-path": "spiffe://strata.local",
            "san-empty-path": "spiffe://strata.local/", "san-empty-name": "spiffe://strata.local/node/",
            "san-no-domain": "spiffe:///node/m", "san-up": "spiffe://strata.local/node/..",
            "san-segments": "spiffe://strata.local/node/a/b", "san-kind": "spiffe://strata.local/admin/m",
            "san-query": "spiffe://strata.local/node/m?x=1", "san-fragment": "spiffe://strata.local/node/m#x",
            "san-port": "spiffe://strata.local:443/node/m", "san-userinfo": "spiffe://u@strata.local/node/m",
            "san-upper-scheme": "SPIFFE://strata.local/node/m", "san-upper-domain": "spiffe://STRATA.local/node/m",
            "san-blank": "spiffe://strata.local/node/m m", "san-percent": "spiffe://strata.local/node/%6d",
            "san-nul": "spiffe://strata.local/node/m\0x", "san-long": "spiffe://strata.local/node/" + "a" * 300,
            "san-long-name": "spiffe://strata.local/node/" + "a" * 64, "san-newline": "spiffe://strata.local/node/m\n",
            "san-coordinator-name": "spiffe://strata.local/coordinator/x"}.items():
        row(label, bad, san=[x509.UniformResourceIdentifier(text)])
    row("other-domain", "FOREIGN_TRUST_DOMAIN", san=[uri("node/m", "elsewhere.example")])
    row("sub-domain", "FOREIGN_TRUST_DOMAIN", san=[uri("node/m", "x.strata.local")])
    row("prefix-domain", "FOREIGN_TRUST_DOMAIN", san=[uri("node/m", "strata.loca")])
    row("longer-domain", "FOREIGN_TRUST_DOMAIN", san=[uri("node/m", "strata.local.evil")])

    # usage
    row("usage-server-only", "BAD_PURPOSE", eku=(EKU.SERVER_AUTH,))
    row("usage-code-signing", "BAD_PURPOSE", eku=(EKU.CODE_SIGNING,))
    row("usage-email", "BAD_PURPOSE", eku=(EKU.EMAIL_PROTECTION,))
    row("usage-time-stamping", "BAD_PURPOSE", eku=(EKU.TIME_STAMPING,))
    row("usage-key-enc", "BAD_PURPOSE", ku="enc")
    row("usage-cert-sign", "BAD_PURPOSE", ku="crl")

    # keys
    row("key-rsa-1024", "WEAK_KEY", key=rsa.generate_private_key(65537, 1024))

    # name constraints of an intermediate
    def constrained(permitted=None, excluded=None):
        tree = [x509.UniformResourceIdentifier]
        return authority("constrained", own, constraints=x509.NameConstraints(
            [tree[0](p) for p in permitted] if permitted else None, [tree[0](p) for p in excluded] if excluded else None))

    row("constraint-kept", "", issuer=constrained(permitted=["strata.local"]))
    row("constraint-other", "NAME_NOT_PERMITTED", issuer=constrained(permitted=["other.example"]))
    row("constraint-excluded", "NAME_NOT_PERMITTED", issuer=constrained(excluded=["strata.local"]))

    # extensions
    row("extension-unknown-critical", "UNKNOWN_EXTENSION", extra=[(raw_extension("1.3.6.1.4.1.99999.1", b"\x05\x00"), True)])
    row("extension-unknown", "", extra=[(raw_extension("1.3.6.1.4.1.99999.1", b"\x05\x00"), False)])
    row("san-truncated", "MALFORMED", san=None, extra=[(raw_extension("2.5.29.17", b"\x30\x20\x86\x1espiffe://"), False)])
    row("usage-garbage", "MALFORMED", eku=None, extra=[(raw_extension("2.5.29.37", b"\x30\x05\x06"), False)])
    row("constraints-garbage", "MALFORMED", ca=None, extra=[(raw_extension("2.5.29.19", b"\x30\x03\x01\x01"), True)])
    return rows


def csr(path, key, name_uri=None, damage=None):
    b = x509.CertificateSigningRequestBuilder().subject_name(name("x"))
    if name_uri:
        b = b.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name_uri)]), critical=False)
    der = bytearray(b.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    if damage == "flip":
        der[-1] ^= 1
    if damage == "cut":
        der = der[:-10]
    if damage == "tail":
        der += b"x"
    with open(path, "wb") as f:
        f.write(der)


def openssl(*argv):
    subprocess.run(["openssl", *argv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def three_levels(d, domain):
    """Root, policy and issuing CA and three leaves, with nothing but the openssl command."""
    os.makedirs(d)
    ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"

    def sign(who, issuer, ext, subject):
        with open(f"{d}/{who}.ext", "w") as f:
            f.write(ext)
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{d}/{who}.key")
        os.chmod(f"{d}/{who}.key", 0o600)
        openssl("req", "-new", "-key", f"{d}/{who}.key", "-subj", subject, "-out", f"{d}/{who}.csr")
        by = ["-signkey", f"{d}/{who}.key"] if issuer is None else ["-CA", f"{d}/{issuer}.pem", "-CAkey", f"{d}/{issuer}.key",
                                                                   "-CAcreateserial"]
        openssl("x509", "-req", "-in", f"{d}/{who}.csr", "-days", "30", "-sha256", "-extfile", f"{d}/{who}.ext", "-out",
                f"{d}/{who}.pem", *by)

    sign("root", None, ca, "/O=Operator/CN=Root")
    sign("policy", "root", ca + f"nameConstraints=critical,permitted;URI:{domain}\n", "/O=Operator/CN=Policy")
    sign("issuing", "policy", ca.replace("CA:TRUE", "CA:TRUE,pathlen:0"), "/O=Operator/CN=Issuing")
    for who, path in (("coordinator", "coordinator"), ("client", "user/admin"), ("node", "node/ext")):
        sign(who, "issuing", "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
             f"extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:spiffe://{domain}/{path}\n", f"/CN={who}")
        with open(f"{d}/{who}.crt", "w") as out:
            for part in (who, "issuing", "policy"):
                out.write(open(f"{d}/{part}.pem").read())
    with open(f"{d}/ca.crt", "w") as out:
        out.write(open(f"{d}/root.pem").read())


def crl(d, issuer, revoked, days="30"):
    """A revocation list with the openssl command."""
    conf, db = f"{d}/crl.conf", f"{d}/crl.db"
    with open(conf, "w") as f:
        f.write(f"[ca]\ndefault_ca=x\n[x]\ndatabase={db}\ncrlnumber={d}/crl.n\ndefault_md=sha256\ndefault_crl_days={days}\n")
    open(db, "a").close()
    with open(f"{d}/crl.n", "w") as f:
        f.write("01\n")
    for c in revoked:
        openssl("ca", "-config", conf, "-cert", f"{d}/{issuer}.pem", "-keyfile", f"{d}/{issuer}.key", "-revoke", c)
    openssl("ca", "-config", conf, "-cert", f"{d}/{issuer}.pem", "-keyfile", f"{d}/{issuer}.key", "-gencrl", "-out",
            f"{d}/crl.pem.new")
    os.rename(f"{d}/crl.pem.new", f"{d}/crl.pem")
