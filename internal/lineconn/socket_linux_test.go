package lineconn

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

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
	option := func(socket syscall.Conn, level, name int) (value int, err error) {
		raw, _ := socket.SyscallConn()
		raw.Control(func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), level, name) })
		return value, err
	}
	if protocol, err := option(l, syscall.SOL_SOCKET, syscall.SO_PROTOCOL); protocol != syscall.IPPROTO_TCP {
		t.Errorf("the protocol is %d, %v; want plain TCP", protocol, err) // not Multipath TCP
	}
	const bufLock = 72 // is 3 if neither buffer grows
	for level, options := range map[int]map[int]int{
		syscall.SOL_SOCKET: {
			syscall.SO_OOBINLINE: 1, syscall.SO_SNDBUF: 128 << 10, syscall.SO_RCVBUF: 48 << 10, bufLock: 3,
			syscall.SO_KEEPALIVE: 1,
		},
		syscall.IPPROTO_TCP: {syscall.TCP_KEEPIDLE: 30, syscall.TCP_KEEPINTVL: 10, syscall.TCP_KEEPCNT: 6},
	} {
		for name, want := range options {
			if got, err := option(ours, level, name); got != want || err != nil {
				t.Errorf("option %d is %d, %v; want %d", name, got, err, want)
			}
		}
	}
	interval, err := option(ours, syscall.IPPROTO_TCP, tcpRTOMax)
	timeout, _ := option(ours, syscall.IPPROTO_TCP, tcpUserTimeout)
	if (interval != 4000 || timeout != 0) && (err == nil || timeout != 50_000) {
		t.Errorf("TCP_RTO_MAX_MS is %d, %v, and TCP_USER_TIMEOUT %d", interval, err, timeout)
	}
	if _, err := Listen("127.0.0.1:nonsense", log.Default()); err == nil {
		t.Error("no error for an invalid address")
	}
	file, _ := os.Open(os.DevNull) // is no socket, and has no options
	defer file.Close()
	raw, _ := file.SyscallConn()
	missing := setOptions(raw)
	for _, name := range []string{"SO_SNDBUF", "SO_RCVBUF", "SO_OOBINLINE", "TCP_USER_TIMEOUT"} {
		if !strings.Contains(missing, "("+name+"): socket operation on non-socket; ") {
			t.Errorf("missing is %q, without %s", missing, name)
		}
	}
}

// A connection that waits for a line uses some 800 bytes of the 2 KiB that a small stack has, and some 500 of the heap.
func TestIdleIsSmall(t *testing.T) {
	const conns = 200
	var ours, peers [conns]net.Conn
	for i := range conns {
		ours[i], peers[i] = tcp(t)
	}
	memory := func() int {
		runtime.GC()
		runtime.GC() // frees what the first call has released
		used := []metrics.Sample{{Name: "/gc/scan/stack:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(used)
		return int(used[0].Value.Uint64() + used[1].Value.Uint64())
	}
	before := memory()
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
	if each := (memory() - before) / conns; each > 1600 {
		t.Errorf("a connection uses %d bytes, want at most 1600", each)
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
	syscall.Shutdown(pair[0], syscall.SHUT_WR) // it accepts nothing even when bytes have left it
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
func TestVanish(t *testing.T) {
	if os.Getenv("LINECONN_SLOW") == "" {
		t.Skip("takes two minutes, and LINECONN_SLOW is not set")
	}
	for text, limit := range map[string]time.Duration{"": 2 * time.Minute, "hello": time.Minute} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			ours, peer := tcp(t)
			peer.SetKeepAlive(false)
			raw, _ := peer.SyscallConn()
			raw.Control(func(fd uintptr) { // drops every packet to the peer
				//lint:ignore SA1019 the package that replaces it is no part of the standard library
				if err := syscall.AttachLsf(int(fd), []syscall.SockFilter{{Code: syscall.BPF_RET}}); err != nil {
					t.Error(err)
				}
			})
			start := time.Now()
			c := NewConn(ours)
			c.Tell("%s", text)
			c.ReadLine()
			took := time.Since(start)
			if t.Logf("noticed after %v: %v", took, c.Err()); took > limit {
				t.Errorf("it took more than %v", limit)
			}
		})
	}
}
