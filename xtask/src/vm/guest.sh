#!/busybox sh
# The guest's first process: mounts what an agent finds on a node, runs each line of /plan, and reports on the serial port $report; kernel messages go to another.
# Report lines start with "@@"; everything between "@@ output" and "@@ end" is a failed test's own output.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TMPDIR=/tmp RUST_BACKTRACE=1
/busybox mkdir -p /bin /sbin /proc /sys /dev /tmp /run /root /etc /var/tmp
/busybox --install -s /bin
# A real tool wins over busybox's: its directory is searched first.
[ -f /tools ] && while read -r tool; do ln -sf "$tool" "/bin/${tool##*/}"; done </tools
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
exec >"$report" 2>&1 </dev/null
stty -F "$report" raw -echo 2>/dev/null
echo "127.0.0.1 localhost" >/etc/hosts
echo "::1 localhost" >>/etc/hosts
hostname guest
ip link set lo up
for module in /modules/*.ko; do
    [ -f "$module" ] && { insmod "$module" || echo "@@ broken ${module##*/} does not load"; }
done
echo "@@ kernel $(uname -r)"
[ -r /sys/kernel/btf/vmlinux ] || echo "@@ broken no BTF"
for mounted in "/sys/fs/cgroup cgroup2" "/sys/fs/bpf bpf" "/sys/kernel/tracing tracefs"; do
    grep -q " $mounted " /proc/mounts || echo "@@ broken not mounted: $mounted"
done

# Hundredths of a second since boot.
now() { read -r uptime _ </proc/uptime; echo "${uptime%.*}${uptime#*.}"; }

export GUARDRAIL_VERIFIER_LOG=/tmp/verifier GUARDRAIL_VERIFIER_LINES=/tmp/lines
mkdir -p "$GUARDRAIL_VERIFIER_LINES"
while read -r number limit binary name; do
    echo "@@ start $number"
    begin=$(now)
    LD_PRELOAD=/verifier_shim.so timeout -s KILL "$limit" "$binary" --exact "$name" --nocapture --test-threads=1 >/tmp/output 2>&1
    code=$?
    took=$(($(now) - begin))
    if [ $code -ne 0 ]; then
        echo "@@ output"
        tail -c 30000 /tmp/output
        echo
        # What the test left running must not disturb the next one.
        kill -9 -1
    elif reason=$(grep -o 'NOT RUN: .*' /tmp/output); then
        echo "@@ notrun $number ${reason#NOT RUN: }"
    fi
    echo "@@ end $number $code $took"
done </plan
[ -f /tmp/verifier ] && sort -u /tmp/verifier | sed 's/^/@@ verifier /'
for file in /tmp/lines/*; do
    [ -f "$file" ] && sed "s|^|@@ line ${file##*/} |" "$file"
done
echo "@@ done"
sync
reboot -f
