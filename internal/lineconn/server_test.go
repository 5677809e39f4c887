package lineconn

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
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
	cancel   context.CancelFunc
	served   chan string     // the result of Serve
	clients  []net.Conn      // in the order in which they connected
	conns    chan net.Conn   // for Accept
	errors   chan error      // for Accept
	closed   context.Context // of the listener
	close    context.CancelFunc
	deadline time.Time // of Accept, or zero
	calls    int       // of Accept
}

// serve starts a server with these limits. It tells clients their network address, or why they are refused, and waits
// until they hang up. Tests must call stop at the end.
func serve(t *testing.T, maxConns, maxPerAddress int) *testServer {
	s := &testServer{t: t, logged: &strings.Builder{}, conns: make(chan net.Conn), errors: make(chan error)}
	tell := func(conn net.Conn, text string) {
		io.WriteString(conn, text)
		conn.Read(make([]byte, 1))
		conn.Close()
	}
	s.Server = &Server{MaxConns: maxConns, MaxPerAddress: maxPerAddress, Log: log.New(s.logged, "", 0)}
	s.Handle = func(conn net.Conn, from netip.Prefix) { tell(conn, name(from)) }
	s.Refuse = func(conn net.Conn, why error) { tell(conn, why.Error()) }
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	s.closed, s.close = context.WithCancel(t.Context())
	s.served = async(func() (string, error) { s.Serve(ctx, s); return "", nil })
	return s
}

func (s *testServer) Accept() (net.Conn, error) {
	if s.calls++; s.calls > 1000 {
		panic("Serve calls Accept in a loop")
	}
	var expired <-chan time.Time
	if !s.deadline.IsZero() {
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

// fail makes Accept return errno once for each of these times, and checks that Accept is called that much later than
// before.
func (s *testServer) fail(errno syscall.Errno, delays ...time.Duration) {
	s.t.Helper()
	for i, want := range delays {
		start := time.Now()
		s.errors <- &net.OpError{Op: "accept", Net: "tcp", Err: errno}
		if got := time.Since(start); got != want*time.Millisecond {
			s.t.Errorf("delay %d was %v, want %d ms", i, got, want)
		}
	}
}

// addrConn is a connection from a network address.
type addrConn struct {
	net.Conn
	addr net.Addr
}

func (c *addrConn) RemoteAddr() net.Addr { return c.addr }

// connect connects n clients from an IP address, or without one if it is "". It checks what each is told.
func (s *testServer) connect(n int, ip, want string) {
	s.t.Helper()
	for range n {
		near, far := net.Pipe()
		conn := &addrConn{Conn: near}
		if ip != "" {
			conn.addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
		}
		s.conns <- conn
		s.clients = append(s.clients, far)
		told := make([]byte, 100)
		n, _ := far.Read(told)
		if string(told[:n]) != want {
			s.t.Errorf("%s is told %q, want %q", ip, told[:n], want)
		}
	}
}

// disconnect hangs up clients, one after the other.
func (s *testServer) disconnect(clients ...net.Conn) {
	for _, c := range clients {
		c.Close()
		synctest.Wait()
	}
}

// wantLog checks the lines that were logged since the last call.
func (s *testServer) wantLog(lines ...string) {
	s.t.Helper()
	synctest.Wait()
	want := strings.Join(append(lines, ""), "\n")
	if got := s.logged.String(); got != want {
		s.t.Errorf("logged %q, want %q", got, want)
	}
	s.logged = &strings.Builder{}
	s.Log.SetOutput(s.logged)
}

// stop checks that Serve returns immediately, and Wait when all clients have hung up, and that all slots are free then.
func (s *testServer) stop() {
	s.t.Helper()
	s.cancel()
	wantResult(s.t, s.served, "")
	waiting := async(func() (string, error) { s.Wait(); return "", nil })
	if synctest.Wait(); s.all.size > 0 && len(waiting) > 0 {
		s.t.Error("Wait has not waited")
	}
	s.disconnect(s.clients...)
	wantResult(s.t, waiting, "")
	if len(s.from) > 0 || s.closed.Err() == nil {
		s.t.Errorf("connections are counted, %v, or the listener is open", s.from)
	}
}

// What the log says, and what refused clients are told.
const (
	emfile = "cannot accept connections: accept tcp: too many open files; raise the limit (ulimit -n); " +
		"retrying, connected clients are not affected"
	enfile = "cannot accept connections: accept tcp: too many open files in system; " +
		"retrying, connected clients are not affected"
	fullLog     = "the server is full: %d connections, up to %d from one address (%s)"
	notFullLog  = "the server is no longer full"
	addressLog  = "too many connections from %s (%d); refusing more"
	againLog    = "accepting connections from %s again"
	full        = "the server is full"
	addressFull = "too many connections from one address"
)

// After an error, Accept is retried in 5 ms, then after twice as long each time, up to a second. A connection resets
// that. Errors are logged once, and once more when there was none for a second, whether or not a client connects. After
// that, a listener that nobody visits for hours waits in one call of Accept.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 0, 0)
		defer s.stop()
		for _, visited := range []bool{false, true} {
			s.fail(syscall.EMFILE, 0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000)
			time.Sleep(1900 * time.Millisecond)
			s.connect(1, "", "loopback")
			s.fail(syscall.ENFILE, 0, 5) // within a second after the last retry
			s.wantLog(emfile)
			time.Sleep(500 * time.Millisecond)
			if visited {
				s.connect(1, "", "loopback")
			}
			time.Sleep(510*time.Millisecond - time.Nanosecond) // the last retry is after 10 ms
			s.wantLog()
			time.Sleep(time.Nanosecond)
			s.wantLog("accepting connections again")
			calls := s.calls
			time.Sleep(10 * time.Hour)
			if s.calls > calls {
				t.Fatalf("Accept returned %d times while nobody connected", s.calls-calls)
			}
		}
		s.fail(syscall.ENFILE, 0, 5)
		s.wantLog(enfile)
		s.Close() // is not an error, and ends Serve
		time.Sleep(time.Second)
		if s.wantLog(); len(s.served) == 0 || s.all.size == 0 {
			t.Error("Serve has not returned, or the connections have ended")
		}
	})
}

// MaxConns limits all connections, MaxPerAddress those from one IPv4 address or IPv6 /64, except loopback and
// connections without an IP address. 0 means no limit. The log names the address with the most connections.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 0, 2)
		defer s.stop()
		for _, tt := range []struct{ ip, sameNetwork, address string }{
			{ip: "10.0.0.7", sameNetwork: "::ffff:10.0.0.7", address: "10.0.0.7"},
			{ip: "::ffff:10.0.0.8", sameNetwork: "10.0.0.8", address: "10.0.0.8"},
			{ip: "2001:db8:1:2::1", sameNetwork: "2001:db8:1:2:ffff:ffff:ffff:ffff", address: "2001:db8:1:2::/64"},
			{ip: "2001:db8:1:3::1", sameNetwork: "2001:db8:1:3::1", address: "2001:db8:1:3::/64"},
			{ip: "fe80::1%eth0", sameNetwork: "fe80::2", address: "fe80::/64"},
		} {
			time.Sleep(time.Second)
			s.connect(2, tt.ip, tt.address)
			s.connect(1, tt.sameNetwork, addressFull)
			s.wantLog(fmt.Sprintf(addressLog, tt.address, 2))
		}
		for _, ip := range []string{"127.1.2.3", "::1", "::ffff:127.0.0.1", ""} {
			s.connect(3, ip, "loopback")
		}
		s.disconnect(s.clients[0])
		s.wantLog(fmt.Sprintf(againLog, "10.0.0.7"))
		s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(1, "10.0.0.7", addressFull)
	})
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 13, 0)
		defer s.stop()
		s.connect(1, "2001:db8::1", "2001:db8::/64")
		s.connect(5, "10.0.0.8", "10.0.0.8")
		s.connect(3, "10.0.0.7", "10.0.0.7")
		s.connect(4, "127.0.0.1", "loopback")
		s.connect(3, "10.0.0.7", full)
		s.wantLog(fmt.Sprintf(fullLog, 13, 5, "10.0.0.8"))
		s.disconnect(s.clients[:2]...)
		s.wantLog(notFullLog)
		time.Sleep(time.Second)
		s.connect(2, "127.0.0.1", "loopback")
		s.connect(2, "", full)
		s.wantLog(fmt.Sprintf(fullLog, 13, 6, "loopback"))
	})
}

// The log says when a limit is reached and when it no longer is. It says the former at most once a second, and the
// latter only after the former.
func TestLimitsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 3, 1)
		defer s.stop()
		s.connect(1, "10.0.0.7", "10.0.0.7")
		for range 3 {
			s.connect(2, "10.0.0.7", addressFull)
			time.Sleep(time.Hour)
		}
		s.wantLog(fmt.Sprintf(addressLog, "10.0.0.7", 1))
		s.connect(2, "", "loopback")
		s.connect(1, "10.0.0.8", full)
		s.wantLog(fmt.Sprintf(fullLog, 3, 2, "loopback"))
		time.Sleep(time.Second - time.Nanosecond)
		for range 9 { // clients come and go
			s.disconnect(s.clients[len(s.clients)-2])
			s.connect(1, "", "loopback")
			s.connect(1, "10.0.0.8", full)
		}
		s.wantLog(notFullLog)
		time.Sleep(time.Nanosecond)
		s.connect(2, "10.0.0.8", full)
		s.wantLog(fmt.Sprintf(fullLog, 3, 2, "loopback"))
		s.disconnect(s.clients[0])
		s.wantLog(notFullLog, fmt.Sprintf(againLog, "10.0.0.7"))
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.8", addressFull) // within a second of another limit
		s.disconnect(s.clients[len(s.clients)-2])
		s.wantLog()
		s.connect(1, "10.0.0.8", "10.0.0.8")
		for range 3 {
			time.Sleep(time.Hour)
			s.connect(2, "10.0.0.9", full)
		}
		s.wantLog(fmt.Sprintf(fullLog, 3, 2, "loopback"))
	})
}

// While 100 connections are being refused, further ones are closed without a message. Accepting never waits for them.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, 2, 1)
		defer s.stop()
		s.connect(1, "10.0.0.7", "10.0.0.7")
		s.connect(100, "10.0.0.7", addressFull)
		s.connect(50, "10.0.0.7", "")
		s.connect(1, "10.0.0.8", "10.0.0.8")
		s.connect(1, "10.0.0.9", "")
		s.disconnect(s.clients[1]) // a refused one
		s.connect(1, "10.0.0.9", full)
		s.connect(1, "10.0.0.9", "")
	})
}
