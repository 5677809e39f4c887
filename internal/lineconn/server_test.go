package lineconn

import (
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
	t        *testing.T
	logged   *strings.Builder
	conns    chan net.Conn // for Accept
	errors   chan error    // for Accept
	clients  []net.Conn    // in the order in which they connected
	closed   context.Context
	close    context.CancelFunc // of the listener
	deadline time.Time          // of Accept, or zero
}

// testServing runs a test with a server with these limits. The server tells clients their network address, or why they
// are refused, and waits until they hang up. At the end, Serve must return immediately, and Wait when all clients have
// hung up. Then all slots must be free.
func testServing(t *testing.T, maxConns, maxPerAddress int, test func(s *testServer)) {
	synctest.Test(t, func(t *testing.T) {
		s := &testServer{t: t, logged: &strings.Builder{}, conns: make(chan net.Conn), errors: make(chan error)}
		tell := func(conn net.Conn, text string) {
			io.WriteString(conn, text)
			conn.Read(make([]byte, 1))
			conn.Close()
		}
		s.Server = &Server{MaxConns: maxConns, MaxPerAddress: maxPerAddress, Log: log.New(s.logged, "", 0)}
		s.Handle = func(conn net.Conn, from netip.Prefix) { tell(conn, name(from)) }
		s.Refuse = func(conn net.Conn, why error) { tell(conn, why.Error()) }
		s.closed, s.close = context.WithCancel(t.Context())
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
		if synctest.Wait(); !served.Load() || waited.Load() || s.closed.Err() == nil {
			t.Error("Serve has not returned, or Wait has, or the listener is open")
		}
		for _, c := range s.clients {
			c.Close()
		}
		if synctest.Wait(); !waited.Load() || len(s.from) > 0 {
			t.Errorf("Wait has not returned, or connections are counted: %v", s.from)
		}
	})
}

func (s *testServer) Accept() (net.Conn, error) {
	var expired <-chan time.Time
	if !s.deadline.IsZero() {
		if !s.deadline.After(time.Now()) {
			panic("Serve calls Accept after its deadline") // would be an endless loop
		}
		expired = time.After(time.Until(s.deadline))
	}
	select {
	case conn := <-s.conns:
		return conn, nil
	case err := <-s.errors:
		return nil, err
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	case <-s.closed.Done():
		return nil, net.ErrClosed
	}
}

func (s *testServer) SetDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *testServer) Addr() net.Addr                { return nil }
func (s *testServer) Close() error                  { s.close(); return nil }

// fail makes Accept return errno once for each of these times, and checks that Accept is called that many milliseconds
// later than before, and what is logged.
func (s *testServer) fail(errno syscall.Errno, log string, delays ...time.Duration) {
	s.t.Helper()
	for i, want := range delays {
		start := time.Now()
		s.errors <- &net.OpError{Op: "accept", Net: "tcp", Err: errno}
		if got := time.Since(start); got != want*time.Millisecond {
			s.t.Errorf("delay %d was %v, want %d ms", i, got, want)
		}
	}
	s.wantLog(log)
}

// connect connects n clients from an IP address, or without one if it is "". It checks what each is told, and what is
// logged.
func (s *testServer) connect(n int, ip, want string, log ...string) {
	s.t.Helper()
	for range n {
		near, far := net.Pipe()
		conn := &pipeEnd{Conn: near}
		if ip != "" {
			conn.remote = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
		}
		s.conns <- conn
		s.clients = append(s.clients, far)
		told := make([]byte, 100)
		n, _ := far.Read(told)
		if string(told[:n]) != want {
			s.t.Errorf("%s is told %q, want %q", ip, told[:n], want)
		}
	}
	s.wantLog(log...)
}

// disconnect hangs up a client, and checks what is logged.
func (s *testServer) disconnect(client int, log ...string) {
	s.t.Helper()
	s.clients[client].Close()
	s.wantLog(log...)
}

// wantLog checks the lines that were logged since the last call.
func (s *testServer) wantLog(lines ...string) {
	s.t.Helper()
	synctest.Wait()
	if got, want := strings.TrimSpace(s.logged.String()), strings.Join(lines, "\n"); got != want {
		s.t.Errorf("logged %q, want %q", got, want)
	}
	s.logged = &strings.Builder{}
	s.Log.SetOutput(s.logged)
}

// What the log says, and what refused clients are told.
const (
	notFull     = "the server is no longer full"
	full        = "the server is full"
	addressFull = "too many connections from one address"
)

// After an error, Accept is retried in 5 ms, then after twice as long each time, up to a second. A connection resets
// that. Errors are logged once, and once more when there was none for a second, whether or not a client connects. After
// that, a listener that nobody visits for hours waits in one call of Accept.
func TestAcceptErrors(t *testing.T) {
	testServing(t, 0, 0, func(s *testServer) {
		for errno, log := range map[syscall.Errno]string{
			syscall.EMFILE: "too many open files; raise the limit (ulimit -n)",
			syscall.ENFILE: "too many open files in system",
		} {
			log = "cannot accept connections: accept tcp: " + log + "; retrying, connected clients are not affected"
			s.fail(errno, log, 0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000)
			time.Sleep(1900 * time.Millisecond)
			s.connect(1, "", "loopback")
			s.fail(errno, "", 0, 5) // within a second after the last retry
			time.Sleep(500 * time.Millisecond)
			if errno == syscall.ENFILE {
				s.connect(1, "", "loopback")
			}
			time.Sleep(510*time.Millisecond - time.Nanosecond) // the last retry is after 10 ms
			s.wantLog()
			time.Sleep(time.Nanosecond)
			s.wantLog("accepting connections again")
			time.Sleep(10 * time.Hour)
		}
		s.Close() // is not an error, and ends Serve
		time.Sleep(time.Second)
		s.wantLog()
	})
	testServing(t, 0, 0, func(s *testServer) {
		s.connect(1, "", "loopback")
		s.errors <- syscall.ENFILE
		synctest.Wait() // Serve is canceled before it retries
	})
}

// MaxPerAddress limits the connections from one IPv4 address or IPv6 /64, except loopback and connections without an IP
// address. 0 means no limit.
func TestLimits(t *testing.T) {
	testServing(t, 0, 2, func(s *testServer) {
		for _, tt := range []struct{ ip, sameNetwork, address string }{
			{ip: "10.0.0.7", sameNetwork: "::ffff:10.0.0.7", address: "10.0.0.7"},
			{ip: "::ffff:10.0.0.8", sameNetwork: "10.0.0.8", address: "10.0.0.8"},
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
		s.disconnect(0, "accepting connections from 10.0.0.7 again")
		s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(1, "10.0.0.7", addressFull)
		s.disconnect(1)
	})
	testServing(t, 6, 0, func(s *testServer) {
		s.connect(2, "10.0.0.7", "10.0.0.7")
		s.connect(3, "10.0.0.8", "10.0.0.8")
		s.connect(1, "", "loopback")
		s.connect(1, "10.0.0.7", full, "the server is full: 6 connections, up to 3 from one address (10.0.0.8)")
	})
}

// MaxConns limits all connections. The log says when a limit is reached and when it no longer is. It says the former at
// most once a second, with the address that has the most connections, and the latter only after the former.
func TestLimitsLoggedOnce(t *testing.T) {
	const fullLog = "the server is full: 3 connections, up to 2 from one address (loopback)"
	testServing(t, 3, 1, func(s *testServer) {
		s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(2, "10.0.0.7", addressFull, "too many connections from 10.0.0.7 (1); refusing more")
		time.Sleep(time.Hour)
		s.connect(2, "10.0.0.7", addressFull)
		s.connect(2, "", "loopback")
		s.connect(1, "10.0.0.8", full, fullLog)
		time.Sleep(time.Second - time.Nanosecond)
		s.disconnect(5, notFull)
		s.connect(1, "", "loopback")
		s.connect(1, "10.0.0.8", full)
		time.Sleep(time.Nanosecond)
		s.connect(2, "10.0.0.8", full, fullLog)
		s.disconnect(0, notFull, "accepting connections from 10.0.0.7 again")
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.8", addressFull) // within a second of another limit
		s.disconnect(len(s.clients) - 2)
		s.connect(1, "10.0.0.8", "10.0.0.8")
		time.Sleep(time.Hour)
		s.connect(2, "10.0.0.9", full, fullLog)
		time.Sleep(time.Hour)
		s.connect(2, "10.0.0.9", full)
	})
}

// While 100 connections are being refused, further ones are closed without a message. Accepting never waits for them.
func TestRefusals(t *testing.T) {
	testServing(t, 2, 1, func(s *testServer) {
		s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(1, "10.0.0.7", addressFull, "too many connections from 10.0.0.7 (1); refusing more")
		s.connect(99, "10.0.0.7", addressFull)
		s.connect(50, "10.0.0.7", "")
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.9", "")
		s.disconnect(1) // a refused one
		s.connect(1, "10.0.0.9", full)
		s.connect(1, "10.0.0.9", "")
	})
}
