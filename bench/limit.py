"""What this machine can do at most: an image sent by plain sockets, in datagrams as mUFS has them.

One process multicasts it, each host receives it into memory.  Nothing is asked for, sealed or
repaired, and the place of a byte is the order of its coming: a datagram lost is an error.
"""

_COMMON = """
import hashlib, json, mmap, resource, socket, sys, time
start, address, what = float(sys.argv[1]), sys.argv[2], sys.argv[3]
GROUP, PORT, SEGMENT, TOGETHER = "239.5.5.1", 7051, 1412, 45
UDP_SEGMENT, UDP_GRO, SO_RCVBUFFORCE = 103, 104, 33
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.settimeout(5)
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
"""

SENDER = (
    _COMMON
    + """
own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
own.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
with open(what, "rb") as file:
    image = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
time.sleep(max(0.0, start - time.monotonic()))
before = cpu()
for begin in range(0, len(image), SEGMENT * TOGETHER):
    own.sendto(image[begin : begin + SEGMENT * TOGETHER], (GROUP, PORT))
print(json.dumps(dict(seconds=time.monotonic() - start, cpu=cpu() - before)))
"""
)

RECEIVER = (
    _COMMON
    + """
size = int(what)
own.bind((GROUP, PORT))
own.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, min(2 * size, 900 << 20))
own.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
memory = bytearray(size)
image, had, error = memoryview(memory), 0, ""
time.sleep(max(0.0, start - time.monotonic()))
before = cpu()
try:
    while had < size:
        had += own.recv_into(image[had : had + 65536])
except TimeoutError:
    error = f"received {had} of {size} bytes"
seconds, used = time.monotonic() - start, cpu() - before
sha256 = hashlib.sha256(memory).hexdigest()
print(json.dumps(dict(seconds=seconds, cpu=used, error=error, sha256=sha256)))
"""
)
