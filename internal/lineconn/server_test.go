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
	if wait := time.Until(l.deadline); wait > 0 {
		expired = time.After(wait)
	} else if !l.deadline.IsZero() {
		panic("Serve calls Accept after its deadline") // would be an endless loop
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

// wantLog checks the lines that were logged since the last call.
func wantLog(t *testing.T, logged *bytes.Buffer, lines ...string) {
	t.Helper()
	synctest.Wait()
	if got, want := strings.TrimSpace(logged.String()), strings.Join(lines, "\n"); got != want {
		t.Errorf("logged %q, want %q", got, want)
	}
	logged.Reset()
}

// After an error, Accept is retried in 5 ms, then after twice as long each time, up to a second. A connection resets
// that. Errors are logged once, and once more when there was none for a second, whether or not a client connects. After
// that, a listener that nobody visits for hours waits in one call of Accept. Serve returns as soon as it is canceled.
func TestAcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, logged, handled := &testListener{accepted: make(chan any)}, &bytes.Buffer{}, 0
		s := &Server{Log: log.New(logged, "", 0), Handle: func(net.Conn, netip.Prefix) { handled++ }}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan bool)
		go func() {
			s.Serve(ctx, l)
			close(served)
		}()
		fail := func(errno syscall.Errno, delays ...time.Duration) { // before each error, in milliseconds
			t.Helper()
			for _, want := range delays {
				start := time.Now()
				l.accepted <- &net.OpError{Op: "accept", Net: "tcp", Err: errno}
				if got := time.Since(start); got != want*time.Millisecond {
					t.Errorf("a delay was %v, want %d ms", got, want)
				}
			}
		}
		conn, _ := net.Pipe()
		for i, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE} {
			fail(errno, 0, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000)
			advice := []string{"; raise the limit (ulimit -n)", ""}[i]
			wantLog(t, logged, "cannot accept connections: accept tcp: "+errno.Error()+advice+
				"; retrying, connected clients are not affected")
			time.Sleep(1900 * time.Millisecond)
			l.accepted <- conn
			fail(errno, 0, 5) // within a second after the last retry
			if time.Sleep(10 * time.Millisecond); i > 0 {
				l.accepted <- conn
			}
			time.Sleep(time.Second - time.Nanosecond)
			wantLog(t, logged)
			time.Sleep(time.Nanosecond)
			wantLog(t, logged, "accepting connections again")
			time.Sleep(10 * time.Hour)
		}
		fail(syscall.ENFILE, 0)
		synctest.Wait()
		start := time.Now()
		cancel()
		<-served
		if s.Wait(); time.Since(start) > 0 || handled != 3 {
			t.Errorf("Serve returned after %v and handled %d connections, want 3", time.Since(start), handled)
		}
	})
}

// The log says when a limit is reached and when it no longer is. It says the former at most once a second, with the
// address that has the most connections, and the latter only after the former.
func TestLimits(t *testing.T) {
	const full = "the server is full: 4 connections, up to 2 from one address (10.0.0.7)"
	const notFull = "the server is no longer full"
	synctest.Test(t, func(t *testing.T) {
		logged := &bytes.Buffer{}
		s := &Server{MaxConns: 4, MaxPerAddress: 2, Log: log.New(logged, "", 0), from: map[netip.Prefix]usage{}}
		seven, eight, exempt := netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("10.0.0.8/32"), netip.Prefix{}
		connect := func(n int, from netip.Prefix, want error, log ...string) {
			t.Helper()
			for range n {
				if err := s.acquire(from); err != want {
					t.Errorf("a connection from %v gets %v, want %v", from, err, want)
				}
			}
			wantLog(t, logged, log...)
		}
		disconnect := func(from netip.Prefix, log ...string) {
			t.Helper()
			s.release(from)
			wantLog(t, logged, log...)
		}
		connect(2, seven, nil)
		connect(2, seven, ErrAddressFull, "too many connections from 10.0.0.7 (2); refusing more")
		time.Sleep(time.Hour)
		connect(2, seven, ErrAddressFull)
		connect(1, exempt, nil)
		connect(1, eight, nil)
		connect(1, eight, ErrFull, full)
		time.Sleep(time.Second - time.Nanosecond)
		disconnect(eight, notFull)
		connect(1, eight, nil)
		connect(1, exempt, ErrFull)
		time.Sleep(time.Nanosecond)
		connect(2, exempt, ErrFull, full)
		disconnect(seven, notFull, "accepting connections from 10.0.0.7 again")
		connect(1, seven, nil)
		connect(1, seven, ErrAddressFull) // within a second of another limit
		for _, from := range []netip.Prefix{seven, seven, eight, exempt} {
			disconnect(from)
		}
		if len(s.from) > 0 {
			t.Errorf("connections are counted: %v", s.from)
		}
	})
}

// While 100 connections are being refused, further ones are closed without a message. Accepting never waits for them.
// Wait waits for what runs.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{MaxConns: 1, Log: log.New(io.Discard, "", 0), from: map[netip.Prefix]usage{}}
		s.Handle = func(net.Conn, netip.Prefix) { time.Sleep(time.Second) }
		s.Refuse = func(conn net.Conn, reason error) {
			io.WriteString(conn, reason.Error()) // waits until the peer reads
		}
		var peers [102]net.Conn
		for i := range peers {
			var conn net.Conn
			conn, peers[i] = net.Pipe()
			s.start(conn) // the first one is accepted
		}
		closed, _ := io.ReadAll(peers[101])
		told := make([]byte, 99)
		n, _ := peers[100].Read(told)
		if string(closed) != "" || string(told[:n]) != ErrFull.Error() {
			t.Errorf("connection 100 is told %q, connection 101 %q", told[:n], closed)
		}
		for _, peer := range peers {
			peer.Close()
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
