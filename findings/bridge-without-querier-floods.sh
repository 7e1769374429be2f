#!/bin/sh
# Linux 6.18: a bridge that does IGMP snooping (the default) and hears no querier sends a group to
# all of its ports, also while it lists which of them have joined, and after that list has run out.
# Once it is the querier itself, it sends to members alone, and no more to a member that does not
# answer: here one whose firewall drops IGMP on its way in, with a report that has expired.
#
# Expected: that it sends to the ports that it lists, as soon as it lists any, and stops when their
# reports expire, as hardware switches do that hear no querier.
#
# Needs root, iproute2, nftables and Python 3, and uses namespaces of its own alone.
set -eu
uname -sr
names="switch sender member other deaf"
prefix=finding-$$
cleanup() {
    for name in $names; do
        ip netns pids $prefix-$name 2>/dev/null | xargs -r kill
        ip netns delete $prefix-$name 2>/dev/null || true
    done
}
trap cleanup EXIT
trap 'exit 1' INT TERM

for name in $names; do
    ip netns add $prefix-$name
done
# Reports expire after 5 s instead of 260 s; the bridge asks each second instead of each 125 s.
ip -n $prefix-switch link add bridge type bridge mcast_snooping 1 mcast_querier 0 \
    mcast_igmp_version 3 mcast_membership_interval 500 mcast_query_interval 100 \
    mcast_query_response_interval 50 mcast_startup_query_interval 50
ip -n $prefix-switch link set bridge up
number=0
for name in sender member other deaf; do
    number=$((number + 1))
    ip link add eth0 netns $prefix-$name type veth peer name $name netns $prefix-switch
    ip -n $prefix-$name address add 192.0.2.$number/24 dev eth0
    ip -n $prefix-$name link set eth0 up
    ip -n $prefix-switch link set $name master bridge up
done
ip netns exec $prefix-deaf nft -f - <<'RULES'
table inet filter {
    chain input {
        type filter hook input priority 0
        ip protocol igmp drop
    }
}
RULES

start() {
    name=$1 && shift
    ip netns exec $prefix-$name python3 -c "import socket, sys, time
handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
$1" 192.0.2.$2 &
}
start sender 'handle.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
while True:
    handle.sendto(bytes(100), ("239.192.2.1", 9000))
    time.sleep(0.01)' 1
join='both = socket.inet_aton("239.192.2.1") + socket.inet_aton(sys.argv[1])
handle.setsockopt(0, socket.IP_ADD_MEMBERSHIP, both)
time.sleep(600)'

arrived() {
    ip netns exec $prefix-$1 cat /sys/class/net/eth0/statistics/rx_packets
}
# Says what arrives within a second: "yes" or "no" for member, other and deaf.
measure() {
    before="$(arrived member) $(arrived other) $(arrived deaf)"
    sleep 1
    after="$(arrived member) $(arrived other) $(arrived deaf)"
    found=$(echo "$before $after" | awk '{
        for (i = 1; i <= 3; i++) printf "%s ", ($(i + 3) - $i > 40) ? "yes" : "no" }')
    listed=$(ip netns exec $prefix-switch bridge mdb show | grep -c 239.192.2.1 || true)
    printf '%-46s member, other, deaf: %-12s ports listed: %s\n' "$1" "$found" "$listed"
    [ "$found$listed" = "$2" ] || changed=yes
}

changed=
sleep 1
measure "no querier, nobody has joined:" "yes yes yes 0"
start member "$join" 2
start deaf "$join" 4
sleep 2
measure "no querier, member and deaf have joined:" "yes yes yes 2"
sleep 6
measure "no querier, their reports have expired:" "yes yes yes 0"
ip -n $prefix-switch link set bridge type bridge mcast_querier 1
sleep 8
measure "the bridge is the querier:" "yes no no 1"
[ -z "$changed" ] || { echo "the behaviour has changed"; exit 1; }
