package lineconn

import (
	"context"
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

// testListener is a Listener in virtual time.
type testListener struct {
	net.Listener          // nil
	accepted     chan any // connections and errors that Accept returns
	deadline     time.Time
}

func (l *testListener) Accept() (net.Conn, error) {
	var expired <-chan time.Time
	if !l.deadline.IsZero() {
		expired = time.After(time.Until(l.deadline))
	}
	select {
	case a := <-l.accepted:
		conn, _ := a.(net.Conn)
		err, _ := a.(error)
		return conn, err
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	}
}

func (l *testListener) SetDeadline(t time.Time) error { l.deadline = t; return nil }
func (l *testListener) Close() error                  { l.accepted <- net.ErrClosed; return nil }

// testLog gets what is logged. A tenth line at a time blocks the server.
type testLog chan string

func (l testLog) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

// want checks the lines that were logged since the last call.
func (l testLog) want(t *testing.T, lines ...string) {
	t.Helper()
	synctest.Wait()
	got, want := "", strings.Join(append(lines, ""), "\n")
	for len(l) > 0 {
		got += <-l
	}
	if got != want {
		t.Errorf("logged %q, want %q", got, want)
	}
}

// After an error, Accept is retried in 5 ms, then after twice as long each time, up to a second. A connection resets
// that. Errors are logged once, and once more when there was none for a second, whether or not a client connects. After
// that, a listener that nobody visits for hours waits in one call of Accept. Serve returns as soon as it is canceled.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, logged := &testListener{accepted: make(chan any)}, make(testLog, 9)
		s := &Server{Log: log.New(logged, "", 0), Handle: func(net.Conn, netip.Prefix) {}}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan bool)
		go func() {
			s.Serve(ctx, l)
			close(served)
		}()
		fail := func(delays ...time.Duration) { // before each error, in milliseconds
			t.Helper()
			for _, want := range delays {
				start := time.Now()
				l.accepted <- &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
				if got := time.Since(start); got != want*time.Millisecond {
					t.Errorf("a delay was %v, want %d ms", got, want)
				}
			}
		}
		conn, _ := net.Pipe()
		for try := range 2 {
			fail(0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000)
			logged.want(t, "cannot accept connections: accept tcp: too many open files; raise the limit (ulimit -n); "+
				"retrying, connected clients are not affected")
			time.Sleep(1900 * time.Millisecond)
			l.accepted <- conn
			fail(0, 5) // within a second after the last retry
			if time.Sleep(10 * time.Millisecond); try > 0 {
				l.accepted <- conn
			}
			time.Sleep(time.Second - time.Nanosecond)
			logged.want(t)
			time.Sleep(time.Nanosecond)
			logged.want(t, "accepting connections again")
			time.Sleep(10 * time.Hour)
		}
		fail(0)
		synctest.Wait()
		start := time.Now()
		cancel()
		if <-served; time.Since(start) > 0 {
			t.Errorf("Serve returned after %v", time.Since(start))
		}
	})
}

// The log says when a limit is reached and when it no longer is. It says the former at most once a second, with the
// address that has the most connections, and the latter only after the former.
func TestLimits(t *testing.T) {
	const full = "the server is full: 4 connections, up to 2 from one address (10.0.0.7)"
	const notFull = "the server is no longer full"
	synctest.Test(t, func(t *testing.T) {
		logged := make(testLog, 9)
		s := &Server{MaxConns: 4, MaxPerAddress: 2, Log: log.New(logged, "", 0), from: map[netip.Prefix]usage{}}
		seven, eight, exempt := netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("10.0.0.8/32"), netip.Prefix{}
		connect := func(n int, from netip.Prefix, want error, log ...string) {
			t.Helper()
			for range n {
				if err := s.acquire(from); err != want {
					t.Errorf("a connection from %v gets %v, want %v", from, err, want)
				}
			}
			logged.want(t, log...)
		}
		connect(2, seven, nil)
		connect(2, seven, ErrAddressFull, "too many connections from 10.0.0.7 (2); refusing more")
		time.Sleep(time.Hour)
		connect(2, seven, ErrAddressFull)
		connect(1, exempt, nil)
		connect(1, eight, nil)
		connect(1, eight, ErrFull, full)
		time.Sleep(time.Second - time.Nanosecond)
		s.release(eight)
		logged.want(t, notFull)
		connect(1, eight, nil)
		connect(1, exempt, ErrFull)
		time.Sleep(time.Nanosecond)
		connect(2, exempt, ErrFull, full)
		s.release(seven)
		s.release(seven)
		logged.want(t, notFull, "accepting connections from 10.0.0.7 again")
		connect(2, seven, nil)
		connect(1, seven, ErrAddressFull) // within a second of another limit
		for _, from := range []netip.Prefix{seven, seven, eight, exempt} {
			s.release(from)
		}
		if logged.want(t); len(s.from) > 0 {
			t.Errorf("connections are counted: %v", s.from)
		}
	})
}

// While 100 connections are being refused, further ones are closed without a message. Wait waits for what runs.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusals := make(chan error)
		s := &Server{MaxConns: 1, Log: log.New(io.Discard, "", 0), from: map[netip.Prefix]usage{}}
		s.Handle = func(net.Conn, netip.Prefix) { time.Sleep(time.Second) }
		s.Refuse = func(_ net.Conn, reason error) { refusals <- reason }
		connect := func() net.Conn {
			conn, peer := net.Pipe()
			s.start(conn)
			return peer
		}
		for range 101 {
			connect() // the first one is accepted
		}
		if text, err := io.ReadAll(connect()); len(text) > 0 || err != nil {
			t.Errorf("a connection too many gets %q, %v", text, err)
		}
		for i := range 101 {
			if reason := <-refusals; reason != ErrFull {
				t.Errorf("refused because %v", reason)
			}
			if synctest.Wait(); i == 0 {
				connect() // is refused, too
			}
		}
		start := time.Now()
		if s.Wait(); time.Since(start) != time.Second {
			t.Errorf("Wait took %v, want 1 s, as Handle", time.Since(start))
		}
	})
}

// A network address is an IPv4 address or an IPv6 /64. Loopback and connections without an IP address are exempt.
func TestNetwork(t *testing.T) {
	for ip, want := range map[string]string{
		"10.0.0.7": "10.0.0.7", "::ffff:10.0.0.7": "10.0.0.7", "fe80::1%eth0": "fe80::/64",
		"2001:db8:1:2::1": "2001:db8:1:2::/64", "2001:db8:1:2:ffff:ffff:ffff:ffff": "2001:db8:1:2::/64",
		"127.1.2.3": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "": "loopback",
	} {
		addr, _ := net.ResolveTCPAddr("tcp", net.JoinHostPort(ip, "1"))
		if got := name(network(addr)); got != want {
			t.Errorf("the network address of %s is %s, want %s", ip, got, want)
		}
	}
}
