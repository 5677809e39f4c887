package lineconn

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// testServer is a Server and its Listener, in virtual time.
type testServer struct {
	*Server
	net.Listener // nil
	t            *testing.T
	logged       bytes.Buffer
	accepted     chan accepted
	clients      []net.Conn
	deadline     time.Time // of Accept, or zero
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

// testServing runs a test with a server with these limits. The server tells clients their network address, or why they
// are refused, and waits until they hang up. At the end, Serve must return immediately, and Wait when all clients have
// hung up. Then all slots must be free.
func testServing(t *testing.T, maxConns, maxPerAddress int, test func(s *testServer)) {
	synctest.Test(t, func(t *testing.T) {
		s := &testServer{t: t, accepted: make(chan accepted)}
		tell := func(conn net.Conn, text string) {
			io.WriteString(conn, text)
			conn.Read(make([]byte, 1))
			conn.Close()
		}
		s.Server = &Server{MaxConns: maxConns, MaxPerAddress: maxPerAddress, Log: log.New(&s.logged, "", 0)}
		s.Handle = func(conn net.Conn, from netip.Prefix) { tell(conn, name(from)) }
		s.Refuse = func(conn net.Conn, reason error) { tell(conn, reason.Error()) }
		ctx, cancel := context.WithCancel(t.Context())
		var served, waited atomic.Bool
		go func() {
			s.Serve(ctx, s)
			served.Store(true)
			s.Wait()
			waited.Store(true)
		}()
		test(s)
		cancel()
		if synctest.Wait(); !served.Load() || waited.Load() {
			t.Errorf("Serve has returned: %v, Wait: %v", served.Load(), waited.Load())
		}
		for _, c := range s.clients {
			c.Close()
		}
		if synctest.Wait(); !waited.Load() || len(s.from) > 0 {
			t.Errorf("Wait has returned: %v; connections are counted: %v", waited.Load(), s.from)
		}
	})
}

func (s *testServer) Accept() (net.Conn, error) {
	var expired <-chan time.Time
	if wait := time.Until(s.deadline); wait > 0 {
		expired = time.After(wait)
	} else if !s.deadline.IsZero() {
		panic("Serve calls Accept after its deadline") // would be an endless loop
	}
	select {
	case a := <-s.accepted:
		return a.conn, a.err
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	}
}

func (s *testServer) SetDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *testServer) Close() error                  { s.accepted <- accepted{err: net.ErrClosed}; return nil }

// fail makes Accept return errno once for each of these times, and checks that Accept is called that many milliseconds
// later than before.
func (s *testServer) fail(errno syscall.Errno, delays ...time.Duration) {
	s.t.Helper()
	for i, want := range delays {
		start := time.Now()
		s.accepted <- accepted{err: &net.OpError{Op: "accept", Net: "tcp", Err: errno}}
		if got := time.Since(start); got != want*time.Millisecond {
			s.t.Errorf("delay %d was %v, want %d ms", i, got, want)
		}
	}
}

// connect connects n clients from an IP address, or without one if it is "". It checks what each is told, and what is
// logged, and returns the last one.
func (s *testServer) connect(n int, ip, want string, log ...string) (client net.Conn) {
	s.t.Helper()
	remote, _ := net.ResolveTCPAddr("tcp", net.JoinHostPort(ip, "1"))
	for range n {
		conn, peer := net.Pipe()
		s.accepted <- accepted{conn: &pipeEnd{Conn: conn, remote: remote}}
		told := make([]byte, 100)
		n, _ := peer.Read(told)
		if string(told[:n]) != want {
			s.t.Errorf("%s is told %q, want %q", ip, told[:n], want)
		}
		s.clients, client = append(s.clients, peer), peer
	}
	s.wantLog(log...)
	return client
}

// disconnect hangs up a client, and checks what is logged.
func (s *testServer) disconnect(client net.Conn, log ...string) {
	s.t.Helper()
	client.Close()
	s.wantLog(log...)
}

// wantLog checks the lines that were logged since the last call.
func (s *testServer) wantLog(lines ...string) {
	s.t.Helper()
	synctest.Wait()
	if got, want := strings.TrimSpace(s.logged.String()), strings.Join(lines, "\n"); got != want {
		s.t.Errorf("logged %q, want %q", got, want)
	}
	s.logged.Reset()
}

// After an error, Accept is retried in 5 ms, then after twice as long each time, up to a second. A connection resets
// that. Errors are logged once, and once more when there was none for a second, whether or not a client connects. After
// that, a listener that nobody visits for hours waits in one call of Accept.
func TestAcceptErrors(t *testing.T) {
	testServing(t, 0, 0, func(s *testServer) {
		for clients, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
			s.fail(errno, 0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000)
			advice := []string{"; raise the limit (ulimit -n)", ""}[clients]
			s.wantLog("cannot accept connections: accept tcp: " + errno.Error() + advice +
				"; retrying, connected clients are not affected")
			time.Sleep(1900 * time.Millisecond)
			s.connect(1, "", "loopback")
			s.fail(errno, 0, 5) // within a second after the last retry
			time.Sleep(10 * time.Millisecond)
			s.connect(clients, "", "loopback")
			time.Sleep(time.Second - time.Nanosecond)
			s.wantLog()
			time.Sleep(time.Nanosecond)
			s.wantLog("accepting connections again")
			time.Sleep(10 * time.Hour)
		}
		s.fail(syscall.ENFILE, 0)
		synctest.Wait() // Serve is canceled before it retries
	})
}

// The limits are those of all connections and of one IPv4 address or IPv6 /64, except loopback and connections without
// an IP address. The log says when a limit is reached and when it no longer is. It says the former at most once a
// second, with the address that has the most connections, and the latter only after the former. While 100 connections
// are being refused, further ones are closed without a message. Accepting never waits for them.
func TestLimits(t *testing.T) {
	const (
		full, addressFull = "the server is full", "too many connections from one address"
		fullLog           = "the server is full: 4 connections, up to 2 from one address (10.0.0.7)"
		notFullLog        = "the server is no longer full"
	)
	testServing(t, 0, 2, func(s *testServer) {
		for _, tt := range []struct{ ip, sameNetwork, address string }{
			{ip: "10.0.0.7", sameNetwork: "::ffff:10.0.0.7", address: "10.0.0.7"},
			{ip: "2001:db8:1:2::1", sameNetwork: "2001:db8:1:2:ffff:ffff:ffff:ffff", address: "2001:db8:1:2::/64"},
			{ip: "2001:db8:1:3::1", sameNetwork: "2001:db8:1:3::1", address: "2001:db8:1:3::/64"},
			{ip: "fe80::1%eth0", sameNetwork: "fe80::2", address: "fe80::/64"},
		} {
			time.Sleep(time.Second)
			s.connect(2, tt.ip, tt.address)
			s.connect(1, tt.sameNetwork, addressFull, "too many connections from "+tt.address+" (2); refusing more")
		}
		for _, ip := range []string{"127.1.2.3", "::1", "::ffff:127.0.0.1", ""} {
			s.connect(3, ip, "loopback")
		}
	})
	testServing(t, 4, 2, func(s *testServer) {
		first := s.connect(2, "10.0.0.7", "10.0.0.7")
		s.connect(2, "10.0.0.7", addressFull, "too many connections from 10.0.0.7 (2); refusing more")
		time.Sleep(time.Hour)
		s.connect(2, "10.0.0.7", addressFull)
		s.connect(1, "", "loopback")
		fourth := s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.8", full, fullLog)
		time.Sleep(time.Second - time.Nanosecond)
		s.disconnect(fourth, notFullLog)
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.9", full)
		time.Sleep(time.Nanosecond)
		s.connect(2, "10.0.0.9", full, fullLog)
		s.disconnect(first, notFullLog, "accepting connections from 10.0.0.7 again")
		first = s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(1, "10.0.0.7", addressFull) // within a second of another limit
		s.disconnect(first)
	})
	testServing(t, 2, 1, func(s *testServer) {
		s.connect(1, "10.0.0.7", "10.0.0.7")
		refused := s.connect(1, "10.0.0.7", addressFull, "too many connections from 10.0.0.7 (1); refusing more")
		s.connect(99, "10.0.0.7", addressFull)
		s.connect(50, "10.0.0.7", "")
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.disconnect(refused)
		s.connect(1, "10.0.0.9", full)
		s.connect(1, "10.0.0.9", "")
	})
}
