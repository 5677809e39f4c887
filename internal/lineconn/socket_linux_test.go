package lineconn

import (
	"bytes"
	"errors"
	"io"
	"log"
	"os"
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
	option := func(socket syscall.Conn, level, name int) (value int) {
		raw, _ := socket.SyscallConn()
		raw.Control(func(fd uintptr) { value, _ = syscall.GetsockoptInt(int(fd), level, name) })
		return value
	}
	const bufLock, neither = 72, 3 // SO_BUF_LOCK: neither buffer grows
	for name, want := range map[int]int{
		syscall.SO_SNDBUF: 128 << 10, syscall.SO_RCVBUF: 48 << 10, bufLock: neither,
		syscall.SO_OOBINLINE: 1, syscall.SO_KEEPALIVE: 1,
	} {
		if got := option(ours, syscall.SOL_SOCKET, name); got != want {
			t.Errorf("socket option %d is %d, want %d", name, got, want)
		}
	}
	for name, want := range map[int]int{syscall.TCP_KEEPIDLE: 30, syscall.TCP_KEEPINTVL: 10, syscall.TCP_KEEPCNT: 6} {
		if got := option(ours, syscall.IPPROTO_TCP, name); got != want {
			t.Errorf("TCP option %d is %d, want %d", name, got, want)
		}
	}
	interval, timeout := option(ours, syscall.IPPROTO_TCP, tcpRTOMax), option(ours, syscall.IPPROTO_TCP, tcpUserTimeout)
	if (interval != 4000 || timeout != 0) && (interval != 0 || timeout != 50_000) {
		t.Errorf("TCP_RTO_MAX_MS is %d, and TCP_USER_TIMEOUT %d", interval, timeout)
	}
	if protocol := option(l, syscall.SOL_SOCKET, syscall.SO_PROTOCOL); protocol != syscall.IPPROTO_TCP {
		t.Errorf("the protocol is %d, not plain TCP", protocol)
	}
	file, _ := os.Open(os.DevNull) // not a socket, so it has no options
	defer file.Close()
	raw, _ := file.SyscallConn()
	if missing := setOptions(raw); strings.Count(missing, "): socket operation on non-socket; ") != 4 {
		t.Errorf("missing is %q", missing)
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
				//lint:ignore SA1019 the package that replaces it is not in the standard library
				if err := syscall.AttachLsf(int(fd), []syscall.SockFilter{{Code: syscall.BPF_RET}}); err != nil {
					t.Error(err)
				}
			})
			start := time.Now()
			c := NewConn(ours)
			c.Tell("%s", text)
			c.ReadLine()
			if took := time.Since(start); took > limit {
				t.Errorf("noticed after %v: %v; want %v", took, c.Err(), limit)
			}
		})
	}
}
