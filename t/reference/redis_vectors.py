#!/usr/bin/env python3
"""Prints t/data/redis/vectors.txt: names and values in Redis as doc/redis.md specifies them,
written from that text and not from the engine's code. Needs python3-cryptography.

    python3 t/reference/redis_vectors.py >t/data/redis/vectors.txt

Of each case: what it is made of, then, from master on, what follows. Token k of the prompt is
k * 40503 mod 129280, byte i of the page (7 i + 3) mod 101, in one layer and one MTP layer; the
quota's window is 490000 + epoch.
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PAGE_TOKENS = 64
RANK, ROPE, LAYERS, MTP_LAYERS = 2, 2, 1, 1
DTYPES = ('f32', 'bf16', 'fp8')


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def field(data):
    return struct.pack('<Q', len(data)) + data


def fields(*parts):
    return b''.join(field(part) for part in parts)


def scope_secret(master, scope, owner):
    info = b'public' if scope == 'public' else b'tenant' + owner
    return mac(mac(b'ngx-llm scope', master), info + b'\x01')


def page_digest(secret, fingerprint, numerics, parent, ids):
    return hashlib.sha256(fields(secret, fingerprint, numerics, struct.pack('<I', 1), parent,
                                 struct.pack('<64I', *ids))).digest()


def derive(master, purpose, owner):
    return mac(master, fields(purpose, owner) + b'\x01')


def row_bytes(dtype):
    if dtype == 'f32':
        return 4 * (RANK + ROPE)
    if dtype == 'bf16':
        return 2 * (RANK + ROPE)
    return (RANK + 4 * ((RANK + 127) // 128) + 2 * ROPE + 15) // 16 * 16


def token(k):
    return k * 40503 % 129280


def print_case(label, secret=bytes(range(1, 49)), scope='tenant', tenant='alice',
               fingerprint=bytes([11]) * 32, numerics=bytes([22]) * 16, dtype='bf16', position=0,
               epoch=1):
    owner = hashlib.sha256(b'*public*' if scope == 'public' else tenant.encode()).digest()
    master = mac(b'ngx-llm secret file', secret)
    tag = derive(master, b'tag', owner)[:16].hex()

    digest = b''
    for page in range(position + 1):
        ids = [token(PAGE_TOKENS * page + i) for i in range(PAGE_TOKENS)]
        digest = page_digest(scope_secret(master, scope, owner), fingerprint, numerics, digest, ids)
    name = 'llm1:{%s}:%s' % (tag, mac(derive(master, b'naming', owner),
                                      fields(digest, struct.pack('<Q', epoch))).hex())

    page_bytes = (LAYERS + MTP_LAYERS) * PAGE_TOKENS * row_bytes(dtype)
    page = bytes((7 * i + 3) % 101 for i in range(page_bytes))
    header = struct.pack('<4sIIIIIQ', b'LLMP', 1, PAGE_TOKENS, DTYPES.index(dtype),
                         LAYERS + MTP_LAYERS, MTP_LAYERS, page_bytes)
    nonce = hashlib.sha256(label.encode()).digest()[:12]
    sealed = AESGCM(derive(master, b'seal', owner)).encrypt(
        nonce, struct.pack('<64I', *ids) + page, fields(name.encode(), header))

    print()
    for key, value in (('case', label), ('secret', secret.hex()), ('scope', scope),
                       ('tenant', tenant), ('fingerprint', fingerprint.hex()),
                       ('numerics', numerics.hex()), ('dtype', dtype), ('position', position),
                       ('epoch', epoch), ('master', master.hex()), ('owner', owner.hex()),
                       ('digest', digest.hex()), ('epoch_name', 'llm1:{%s}:epoch' % tag),
                       ('quota_name', 'llm1:{%s}:bytes:%d' % (tag, 490000 + epoch)),
                       ('name', name), ('value', (header + nonce + sealed).hex())):
        print(key, value)


def main():
    print('# t/reference/redis_vectors.py says what of which')
    print_case('base')
    print_case('f32', dtype='f32', numerics=bytes([23]) * 16)
    print_case('fp8', dtype='fp8', numerics=bytes([24]) * 16)
    print_case('secret', secret=bytes(range(2, 34)))
    print_case('tenant', tenant='bob')
    print_case('public', scope='public')
    print_case('fingerprint', fingerprint=bytes([12]) * 32)
    print_case('numerics', numerics=bytes([25]) * 16)
    print_case('position', position=1)
    print_case('epoch', epoch=0x123456789abcdef)


main()
