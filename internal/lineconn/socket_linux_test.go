package lineconn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What Listen accepts has the options for peers that nobody can trust.
func TestListenOptions(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, _ := tcp(t)
	listener, _ := l.SyscallConn()
	accepted, _ := ours.SyscallConn()
	for _, o := range []struct {
		of                  syscall.RawConn
		name                string
		level, option, want int
	}{
		{listener, "SO_PROTOCOL", syscall.SOL_SOCKET, 38, syscall.IPPROTO_TCP},
		{accepted, "SO_SNDBUF", syscall.SOL_SOCKET, syscall.SO_SNDBUF, 128 << 10},
		{accepted, "SO_RCVBUF", syscall.SOL_SOCKET, syscall.SO_RCVBUF, 48 << 10},
		{accepted, "SO_BUF_LOCK", syscall.SOL_SOCKET, 72, 3}, // both buffers stay as they are
		{accepted, "SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{accepted, "TCP_KEEPIDLE", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 30},
		{accepted, "TCP_KEEPINTVL", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 10},
		{accepted, "TCP_KEEPCNT", syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 6},
	} {
		o.of.Control(func(fd uintptr) {
			if got, err := syscall.GetsockoptInt(int(fd), o.level, o.option); got != o.want || err != nil {
				t.Errorf("%s is %d, %v; want %d", o.name, got, err, o.want)
			}
		})
	}
	accepted.Control(func(fd uintptr) {
		most, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, 44) // TCP_RTO_MAX_MS, from Linux 6.15 on
		patience, _ := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, 18)
		if (most != 4000 || patience != 0) && (err == nil || patience != 50_000) {
			t.Errorf("it is repeated after %d ms at most, %v, and given up after %d ms", most, err, patience)
		}
	})
	if _, err := Listen("127.0.0.1:nonsense"); err == nil {
		t.Error("listening on nonsense")
	}
	file, _ := os.Stdin.SyscallConn() // is no TCP socket
	if err := listenConfig().Control("", "", file); err == nil {
		t.Error("no error for options that cannot be set")
	}
}

// A connection that waits for a line uses so little stack that one of 2 KiB, of which Go keeps 928 bytes for itself, is
// enough, and few bytes besides. An announcement is made up once, and costs no memory for each member.
func TestIdleIsSmall(t *testing.T) {
	const conns = 200
	w := crew(t, 1)
	var ours, peers [conns]net.Conn
	for i := range conns {
		ours[i], peers[i] = tcp(t)
	}
	memory := func() (stack, heap int) {
		runtime.GC()
		runtime.GC() // for what the first one has given back
		used := []metrics.Sample{{Name: "/gc/scan/stack:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(used)
		return int(used[0].Value.Uint64()), int(used[1].Value.Uint64())
	}
	stackBefore, heapBefore := memory()
	var all [conns]*Conn
	for i, peer := range peers {
		c := w.NewConn(ours[i])
		all[i] = c
		go func() {
			c.Tell("question")
			for _, err := c.ReadLine(); err == nil; _, err = c.ReadLine() {
				c.Tell("answer")
			}
		}()
		io.WriteString(peer, "line\n")
		io.ReadFull(peer, make([]byte, len("questionanswer")))
	}
	stack, heap := memory()
	if stack, heap = (stack-stackBefore)/conns, (heap-heapBefore)/conns; stack > 1000 || heap > 1000 {
		t.Errorf("each has %d bytes on the stack and %d others, want 1000 at most", stack, heap)
	}
	g := NewGroup(time.Hour)
	for _, c := range all[:50] {
		g.Add(c)
	}
	announce := func() {
		g.Announce(NewNotice([]byte("winning validator")), nil)
		for _, c := range all[:50] {
			c.Flush()
		}
	}
	if allocated := testing.AllocsPerRun(20, announce); allocated > 25 {
		t.Errorf("an announcement to 50 members allocates %v times", allocated)
	}
}

// Bytes that leave the send queue are progress, even if the kernel takes no more yet.
func TestPatienceSeesQueue(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.SetNonblock(pair[0], true)
	for err == nil { // until it is full
		_, err = syscall.Write(pair[0], make([]byte, 4<<10))
	}
	queue, taker := os.NewFile(uintptr(pair[0]), "queue"), os.NewFile(uintptr(pair[1]), "taker")
	synctest.Test(t, func(t *testing.T) { // with a peer that takes nothing, but whose queue shrinks
		c := pipe(t, crew(t, 1)).conn
		c.raw, _ = queue.SyscallConn()
		c.Tell("hello")
		for range 3 {
			time.Sleep(24999 * time.Millisecond)
			io.ReadFull(taker, make([]byte, 32<<10))
		}
		c.Tell("hello") // is no progress
		start := time.Now()
		mustAsk(t, c, "", ErrStalled)
		if took := time.Since(start); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("it was cut off after %v, want 30 s", took)
		}
	})
}

// A peer that is gone without a word is noticed within a minute of the first thing sent to it, and within two minutes of
// silence. (It takes two minutes.)
func TestVanish(t *testing.T) {
	if os.Getenv("LINECONN_SLOW") == "" {
		t.Skip("LINECONN_SLOW is not set")
	}
	t.Parallel()
	const cable, sleep = "ip link set veth1 down", "ip addr del 10.99.0.2/24 dev veth1" // a cable, a machine that sleeps
	for _, tt := range []struct {
		vanish, words string
		most          time.Duration
	}{{cable, "", 2 * time.Minute}, {sleep, "", 2 * time.Minute}, {cable, "hello", time.Minute}, {sleep, "hello", time.Minute}} {
		t.Run(fmt.Sprintf("%s, told %q", tt.vanish, tt.words), func(t *testing.T) {
			t.Parallel()
			runtime.LockOSThread() // to the end: the thread, and the network it is in, end with the goroutine
			unshare := func() {
				if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
					t.Skip("no network namespace: ", err)
				}
			}
			sh := func(commands string) {
				if out, err := exec.Command("sh", "-ec", commands).CombinedOutput(); err != nil {
					t.Skip("no network: ", err, string(out))
				}
			}
			unshare()
			here, _ := os.Open("/proc/thread-self/ns/net")
			defer here.Close()
			l, err := Listen("0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			unshare() // from here on the thread is where the peer is
			sh(fmt.Sprintf(`here=/proc/%d/fd/%d
				ip link add veth1 type veth peer name veth0 netns $here
				nsenter --net=$here sh -ec "ip addr add 10.99.0.1/24 dev veth0; ip link set veth0 up"
				ip addr add 10.99.0.2/24 dev veth1; ip link set veth1 up`, os.Getpid(), here.Fd()))
			_, dialErr := net.Dial("tcp", fmt.Sprint("10.99.0.1:", l.Addr().(*net.TCPAddr).Port))
			ours, err := l.Accept()
			if err := errors.Join(err, dialErr); err != nil {
				t.Fatal(err)
			}
			c := crew(t, 1).NewConn(ours)
			sh(tt.vanish)
			start := time.Now()
			c.Tell("%s", tt.words)
			c.ReadLine()
			took := time.Since(start)
			if t.Logf("noticed after %v: %v", took, c.Err()); took > tt.most {
				t.Errorf("it took more than %v", tt.most)
			}
		})
	}
}

// A peer that takes some every 8 s, through the smallest of windows, is not given up (from Linux 6.15 on).
func TestSlowReader(t *testing.T) {
	if os.Getenv("LINECONN_SLOW") == "" {
		t.Skip("LINECONN_SLOW is not set")
	}
	t.Parallel()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	peer, dialErr := dialer.Dial("tcp", l.Addr().String())
	ours, err := l.Accept()
	if err := errors.Join(err, dialErr); err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := crew(t, 1).NewConn(ours)
	for range 10 {
		c.Tell("%s", strings.Repeat("x", 20<<10))
		time.Sleep(8 * time.Second)
		peer.Read(make([]byte, 8<<10))
	}
	if err := c.Err(); err != nil {
		t.Error(err)
	}
	c.CloseNow()
}
