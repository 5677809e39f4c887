package lineconn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// socketOption returns the value of a socket option.
func socketOption(socket syscall.Conn, level, name int) (value int, err error) {
	raw, err := socket.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), level, name) })
	}
	return value, err
}

// Connections have the options for untrusted peers. An option that cannot be set is left out, with a warning. Without
// TCP_RTO_MAX_MS, TCP_USER_TIMEOUT replaces it.
func TestListenOptions(t *testing.T) {
	var logged bytes.Buffer
	l, err := Listen("127.0.0.1:0", log.New(&logged, "", 0))
	if err != nil || logged.Len() > 0 {
		t.Fatal(err, &logged)
	}
	defer l.Close()
	ours, _ := tcp(t)
	for _, o := range []struct {
		socket              syscall.Conn
		level, option, want int
	}{
		{socket: l, level: syscall.SOL_SOCKET, option: syscall.SO_PROTOCOL, want: syscall.IPPROTO_TCP}, // not multipath
		{socket: ours, level: syscall.SOL_SOCKET, option: syscall.SO_OOBINLINE, want: 1},
		{socket: ours, level: syscall.SOL_SOCKET, option: syscall.SO_SNDBUF, want: 128 << 10},
		{socket: ours, level: syscall.SOL_SOCKET, option: syscall.SO_RCVBUF, want: 48 << 10},
		{socket: ours, level: syscall.SOL_SOCKET, option: 72, want: 3}, // SO_BUF_LOCK: neither buffer grows
		{socket: ours, level: syscall.SOL_SOCKET, option: syscall.SO_KEEPALIVE, want: 1},
		{socket: ours, level: syscall.IPPROTO_TCP, option: syscall.TCP_KEEPIDLE, want: 30},
		{socket: ours, level: syscall.IPPROTO_TCP, option: syscall.TCP_KEEPINTVL, want: 10},
		{socket: ours, level: syscall.IPPROTO_TCP, option: syscall.TCP_KEEPCNT, want: 6},
	} {
		if got, err := socketOption(o.socket, o.level, o.option); got != o.want || err != nil {
			t.Errorf("option %d is %d, %v; want %d", o.option, got, err, o.want)
		}
	}
	interval, err := socketOption(ours, syscall.IPPROTO_TCP, tcpRTOMax)
	timeout, _ := socketOption(ours, syscall.IPPROTO_TCP, tcpUserTimeout)
	if (interval != 4000 || timeout != 0) && (err == nil || timeout != 50_000) {
		t.Errorf("TCP_RTO_MAX_MS is %d, %v, and TCP_USER_TIMEOUT %d", interval, err, timeout)
	}
	if _, err := Listen("127.0.0.1:nonsense", log.Default()); err == nil {
		t.Error("no error for an invalid address")
	}
	options := []int{syscall.SO_SNDBUF, syscall.SO_RCVBUF, syscall.SO_OOBINLINE, tcpRTOMax, tcpUserTimeout}
	for _, tt := range []struct {
		err     error // of setting any option
		tried   []int
		missing []string
	}{
		{tried: options[:4]},
		{err: syscall.ENOPROTOOPT, tried: options, missing: []string{
			"cannot limit the send buffers (SO_SNDBUF): protocol not available",
			"cannot limit the receive buffers (SO_RCVBUF): protocol not available",
			"cannot read urgent input in order (SO_OOBINLINE): protocol not available",
			"cannot notice in a minute that a client has vanished (TCP_USER_TIMEOUT): protocol not available",
		}},
	} {
		var tried []int
		missing := setOptionsWith(func(_, option, _ int) error {
			tried = append(tried, option)
			return tt.err
		})
		if !slices.Equal(missing, tt.missing) || !slices.Equal(tried, tt.tried) {
			t.Errorf("if the error is %v: tried %v, missing %q", tt.err, tried, missing)
		}
	}
}

// A connection that waits for a line fits into a stack of 2 KiB, of which Go reserves 928 bytes, and needs less than
// 1 KiB of other memory.
func TestIdleIsSmall(t *testing.T) {
	const conns = 200
	var ours, peers [conns]net.Conn
	for i := range conns {
		ours[i], peers[i] = tcp(t)
	}
	memory := func() (stack, heap int) {
		runtime.GC()
		runtime.GC() // frees what the first call has released
		used := []metrics.Sample{{Name: "/gc/scan/stack:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(used)
		return int(used[0].Value.Uint64()), int(used[1].Value.Uint64())
	}
	stackBefore, heapBefore := memory()
	for i, peer := range peers {
		c := NewConn(ours[i])
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
	stack, heap = (stack-stackBefore)/conns, (heap-heapBefore)/conns
	if stack > 1000 || heap > 1000 {
		t.Errorf("a connection takes %d bytes of stack and %d others, want at most 1000 of each", stack, heap)
	}
}

// Bytes that leave the send buffer are progress, even if the kernel accepts no more yet.
func TestProgressInSendBuffer(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.SetNonblock(pair[0], true)
	for err == nil { // until the buffer is full
		_, err = syscall.Write(pair[0], make([]byte, 4<<10))
	}
	buffer, reader := os.NewFile(uintptr(pair[0]), "buffer"), os.NewFile(uintptr(pair[1]), "reader")
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t) // with a peer that reads nothing, and the buffer of another connection
		c.raw, _ = buffer.SyscallConn()
		c.Tell("hello")
		for range 3 {
			time.Sleep(25 * time.Second)
			io.ReadFull(reader, make([]byte, 32<<10))
		}
		c.Tell("hello") // is not progress
		start := time.Now()
		wantErr(t, c.Conn, nil)
		_, err := c.ReadLine()
		if took := time.Since(start); err != ErrStalled || took < 29*time.Second || took > 31*time.Second {
			t.Errorf("disconnected after %v: %v; want 30 s", took, err)
		}
	})
}

// A peer that reads nothing is disconnected before half a MiB is held for it. The kernel then holds nothing any more.
func TestStalledPeer(t *testing.T) {
	ours, peer := tcp(t)
	peer.SetReadBuffer(4096) // the minimum
	c := NewConn(ours)
	for range 512 {
		c.Tell("%01024d", 0)
	}
	wantErr(t, c, ErrStalled)
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stalled peer gets %v, want a reset", err)
	}
}

// A peer that vanishes is noticed within a minute of the first message sent to it, and within two minutes of silence.
// (This takes two minutes, and needs root for its network namespaces.)
func TestVanish(t *testing.T) {
	if os.Getenv("LINECONN_SLOW") == "" {
		t.Skip("LINECONN_SLOW is not set")
	}
	for _, vanish := range []string{"ip link set veth1 down", "ip addr del 10.99.0.2/24 dev veth1"} {
		for text, limit := range map[string]time.Duration{"": 2 * time.Minute, "hello": time.Minute} {
			t.Run(vanish+text, func(t *testing.T) {
				t.Parallel()
				runtime.LockOSThread() // never unlocked: the thread and its namespace end with the goroutine
				l, commands := listenInNamespace(t)
				if out, err := exec.Command("sh", "-ec", commands).CombinedOutput(); err != nil {
					t.Skip("no network: ", err, string(out))
				}
				_, dialErr := net.Dial("tcp", fmt.Sprint("10.99.0.1:", l.Addr().(*net.TCPAddr).Port))
				ours, err := l.Accept()
				if err := errors.Join(err, dialErr, exec.Command("sh", "-c", vanish).Run()); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				c := NewConn(ours)
				time.AfterFunc(3*time.Minute, func() { ours.Close() }) // ends a failing test
				c.Tell("%s", text)
				c.ReadLine()
				took := time.Since(start)
				if t.Logf("noticed after %v: %v", took, c.Err()); took > limit {
					t.Errorf("it took more than %v", limit)
				}
			})
		}
	}
}

// listenInNamespace listens in a new network namespace, and moves the thread to another one, for the peer. It returns
// shell commands that connect the two.
func listenInNamespace(t *testing.T) (l *net.TCPListener, commands string) {
	err := syscall.Unshare(syscall.CLONE_NEWNET)
	if err != nil {
		t.Skip("no network namespace: ", err)
	}
	namespace, openErr := os.Open("/proc/thread-self/ns/net")
	l, listenErr := Listen("0.0.0.0:0", log.Default())
	if err := errors.Join(openErr, listenErr, syscall.Unshare(syscall.CLONE_NEWNET)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		namespace.Close()
	})
	return l, fmt.Sprintf(`namespace=/proc/%d/fd/%d
		ip link add veth1 type veth peer name veth0 netns $namespace
		nsenter --net=$namespace sh -ec "ip addr add 10.99.0.1/24 dev veth0; ip link set veth0 up"
		ip addr add 10.99.0.2/24 dev veth1; ip link set veth1 up`, os.Getpid(), namespace.Fd())
}
