package lineconn

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// desk is a server whose conversations, and refusals, last until the client leaves.
// It is its own listener, with the troubles that a test wants it to have.
type desk struct {
	Server
	t                 *testing.T
	end               func()          // ends Serve
	said              strings.Builder // on the console, since the test last looked
	in, full, tooMany int             // conversations and refusals so far
	last              netip.Prefix    // where the last conversation is from
	clients           []net.Conn      // who came and did not leave

	conns    chan net.Conn
	closed   context.Context
	close    func()
	errno    atomic.Uintptr // what Accept complains of; 0: nothing
	deadline time.Time      // of Accept
	start    time.Time
	tries    []int64 // when Accept was called, in ms after start
}

// serve does a test with a server. When that is done, Serve ends at once, all clients leave, and nothing may be left of them.
func serve(t *testing.T, places, perAddress int, test func(d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &desk{t: t, conns: make(chan net.Conn), start: time.Now()}
		d.closed, d.close = context.WithCancel(t.Context())
		d.Max, d.MaxPerAddress, d.Log = places, perAddress, log.New(&d.said, "", 0)
		stay := func(conn net.Conn) { conn.Read(make([]byte, 1)); conn.Close() }
		d.Handle = func(conn net.Conn, from netip.Prefix) { d.in++; d.last = from; stay(conn) }
		d.Refuse = func(conn net.Conn, why error) {
			*map[error]*int{ErrFull: &d.full, ErrTooMany: &d.tooMany}[why]++
			stay(conn)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { d.Serve(ctx, d); close(done) }()
		synctest.Wait() // it accepts
		d.end = func() {
			start := time.Now()
			cancel()
			<-done
			if took := time.Since(start); took != 0 || d.closed.Err() == nil {
				t.Errorf("Serve ended %v after its context; the listener is closed: %v", took, d.closed.Err())
			}
		}
		test(d)
		d.end()
		d.leave(len(d.clients))
		d.Wait()
		if len(d.from) > 0 || d.all.size != 0 {
			t.Errorf("all have left, and there are %d in all, by address %v", d.all.size, d.from)
		}
	})
}

func (d *desk) Accept() (net.Conn, error) {
	d.tries = append(d.tries, time.Since(d.start).Milliseconds())
	if errno := d.errno.Load(); errno != 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.Errno(errno)}
	}
	var expired <-chan time.Time
	if !d.deadline.IsZero() {
		expired = time.After(time.Until(d.deadline))
	}
	select {
	case conn := <-d.conns:
		return conn, nil
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	case <-d.closed.Done():
		return nil, net.ErrClosed
	}
}

func (d *desk) SetDeadline(t time.Time) error { d.deadline = t; return nil }
func (d *desk) Close() error                  { d.close(); return nil }
func (d *desk) Addr() net.Addr                { return nil }

// peer is a connection from addr, such as "10.0.0.7:1234"; "" is no IP address.
type peer struct {
	net.Conn
	addr string
}

func (p peer) RemoteAddr() net.Addr {
	if p.addr == "" {
		return p.Conn.RemoteAddr()
	}
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(p.addr))
}

// visit is a client: its end of a connection.
func (d *desk) visit(addr string) net.Conn {
	conn, client := net.Pipe()
	d.conns <- peer{conn, addr}
	synctest.Wait()
	return client
}

// come makes n clients from addr come and stay.
func (d *desk) come(n int, addr string) {
	for range n {
		d.clients = append(d.clients, d.visit(addr))
	}
}

// leave makes the first n of the clients leave, one after the other.
func (d *desk) leave(n int) {
	for _, client := range d.clients[:n] {
		client.Close()
		synctest.Wait()
	}
	d.clients = d.clients[n:]
}

// mustHave checks how many had a conversation or were refused so far.
func (d *desk) mustHave(in, full, tooMany int) {
	d.t.Helper()
	synctest.Wait()
	if d.in != in || d.full != full || d.tooMany != tooMany {
		d.t.Errorf("%d were let in, to %d it was full, %d were too many; want %d, %d, %d", d.in, d.full, d.tooMany, in, full, tooMany)
	}
}

// mustSay checks the lines that were said since the last time.
func (d *desk) mustSay(want ...string) {
	d.t.Helper()
	synctest.Wait()
	d.Log.SetOutput(io.Discard) // waits for who writes, for the race detector
	if got := d.said.String(); got != strings.Join(append(want, ""), "\n") {
		d.t.Errorf("the server said %q, want %q", got, want)
	}
	d.said.Reset()
	d.Log.SetOutput(&d.said)
}

// mustClose checks that the connection of client is closed.
func (d *desk) mustClose(client net.Conn) {
	d.t.Helper()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		d.t.Errorf("a client gets %v, want that the connection is closed", err)
	}
}

// After an error Accept is tried again in 5 ms, then after twice as long each time,
// up to a second; that starts anew once a connection has been accepted, or the trouble is over.
func TestBackoff(t *testing.T) {
	serve(t, 0, 0, func(d *desk) {
		d.errno.Store(uintptr(syscall.EMFILE))
		d.come(1, "")
		time.Sleep(4 * time.Second)
		d.errno.Store(0)
		time.Sleep(time.Second) // past the end of the last wait
		d.errno.Store(uintptr(syscall.EMFILE))
		d.come(1, "") // at 5 s
		time.Sleep(50 * time.Millisecond)
		d.errno.Store(0)
		time.Sleep(time.Second)
		d.errno.Store(uintptr(syscall.EMFILE)) // just after the trouble is over
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if want := []int64{0, 0, 5, 15, 35, 75, 155, 315, 635, 1275, 2275, 3275, 4275, 5000, 5005, 5015, 5035, 5075, 6075, 6080, 6090}; !slices.Equal(d.tries, want) {
			t.Errorf("Accept was called at %v, want %v", d.tries, want)
		}
	})
}

// Trouble is said once, however long it lasts, and once again when it is over: when a second has passed without an error.
func TestTroubleIsSaidOnce(t *testing.T) {
	serve(t, 0, 0, func(d *desk) {
		for _, somebody := range []bool{false, true} { // the second trouble is said as the first
			d.come(1, "")
			time.Sleep(time.Hour)
			d.mustSay() // no trouble

			// The trouble is met after the next connection.
			d.errno.Store(uintptr(syscall.EMFILE))
			d.come(1, "")
			d.mustSay("cannot accept terminals: accept tcp: " + syscall.EMFILE.Error() + "; trying again, those connected go on")
			time.Sleep(time.Hour)

			// A connection, and trouble again within a second: that is the same one.
			d.errno.Store(0)
			time.Sleep(time.Second)
			d.errno.Store(uintptr(syscall.ENFILE))
			d.come(1, "")
			time.Sleep(10 * time.Second)

			// A second after the next try, 275 ms from now, it is over, whether somebody comes or not.
			d.errno.Store(0)
			time.Sleep(500 * time.Millisecond)
			if somebody {
				d.come(1, "")
			}
			time.Sleep(775*time.Millisecond - time.Nanosecond)
			d.mustSay()
			time.Sleep(time.Nanosecond)
			d.mustSay("accepting terminals again")
		}
		d.mustHave(7, 0, 0)
	})
}

// Neither the end of its context nor somebody else who closes the listener is trouble, and both end Serve at once.
// Wait returns as soon as the last conversation, or refusal, is over.
func TestEnd(t *testing.T) {
	for _, stay := range []time.Duration{3 * time.Second, 7 * time.Second} {
		serve(t, 0, 1, func(d *desk) {
			d.Handle = func(net.Conn, netip.Prefix) { time.Sleep(stay) }
			d.Refuse = func(net.Conn, error) { time.Sleep(5 * time.Second) }
			d.come(1, "10.0.0.7:1")
			d.come(1, "10.0.0.7:1")
			d.said.Reset()
			if stay == 7*time.Second {
				d.close()
				synctest.Wait()
			}
			d.end()
			d.mustSay()
			start := time.Now()
			d.Wait()
			if took, want := time.Since(start), max(stay, 5*time.Second); took != want {
				t.Errorf("Wait took %v, want %v", took, want)
			}
		})
	}
}

// MaxPerAddress from one network address are handled at once, the next is refused.
func TestMaxPerAddress(t *testing.T) {
	for _, test := range []struct{ addr, from, same string }{ // same: another from the same network address
		{"10.0.0.7:1", "10.0.0.7/32", "[::ffff:10.0.0.7]:2"},
		{"[::ffff:10.0.0.7]:1", "10.0.0.7/32", "10.0.0.7:1"},
		{"[2001:db8:1:2::1]:1", "2001:db8:1:2::/64", "[2001:db8:1:2:ffff:ffff:ffff:ffff]:1"},
		{"[fe80::1%eth0]:1", "fe80::/64", "[fe80::2]:1"},
	} {
		serve(t, 0, 2, func(d *desk) {
			d.come(2, test.addr)
			if got := d.last.String(); got != test.from {
				t.Errorf("%s is from %s, want %s", test.addr, got, test.from)
			}
			d.come(1, test.same)
			d.mustHave(2, 0, 1)
			d.come(2, "10.0.0.8:1") // they are not from there
			d.come(2, "[2001:db8:1:3::1]:1")
			d.mustHave(6, 0, 1)
			d.leave(1)
			d.come(2, test.addr)
			d.mustHave(7, 0, 2)
		})
	}
}

// Loopback, and what is no IP address, has no limit of its own.
func TestNotCounted(t *testing.T) {
	for _, addr := range []string{"127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.1]:1", ""} {
		serve(t, 50, 1, func(d *desk) {
			d.come(60, addr)
			d.mustHave(50, 10, 0)
			if d.last.IsValid() {
				t.Errorf("%q is from %s, want that it is not counted", addr, d.last)
			}
			d.mustSay("the server is full: 50 terminals, the most of them (50) from loopback")
		})
	}
}

// A limit, of all or of an address, is said when somebody is refused, once until a tenth of the places (at least one) is free.
func TestSaidOnce(t *testing.T) {
	const from = "[2001:db8::1]:1"
	for _, test := range []struct{ places, over int }{{1, 1}, {19, 1}, {20, 2}, {100, 10}} {
		for _, limits := range [][2]int{{test.places, 0}, {0, test.places}} {
			said, over := fmt.Sprintf("the server is full: %d terminals, the most of them (%[1]d) from 2001:db8::/64", test.places), "there is room again"
			if limits[1] > 0 {
				said, over = fmt.Sprintf("too many terminals from 2001:db8::/64: %d; further ones are refused", test.places), "terminals from 2001:db8::/64 are let in again"
			}
			serve(t, limits[0], limits[1], func(d *desk) {
				for range 2 {
					d.come(test.places, from)
					time.Sleep(time.Hour)
					d.mustSay()
					d.visit(from).Close()
					d.mustSay(said)
					for range 3 { // some leave, and others come
						d.leave(test.over - 1)
						time.Sleep(time.Hour)
						d.come(test.over-1, from)
						d.visit(from).Close()
					}
					d.mustSay()
					d.leave(test.over)
					d.mustSay(over)
					d.leave(test.places - test.over)
					d.mustSay()
				}
			})
		}
	}
}

// Who has the most places is named, whoever is refused, also if it is loopback.
func TestMostFrom(t *testing.T) {
	serve(t, 16, 0, func(d *desk) {
		d.come(4, "[2001:db8::1]:1")
		d.come(5, "10.0.0.8:1")
		d.come(3, "10.0.0.7:1")
		d.come(4, "127.0.0.1:1")
		d.visit("10.0.0.7:1").Close()
		d.mustSay("the server is full: 16 terminals, the most of them (5) from 10.0.0.8")
		d.leave(4)
		time.Sleep(time.Second)
		d.come(4, "127.0.0.1:1")
		d.visit("10.0.0.7:1").Close()
		d.mustSay("there is room again", "the server is full: 16 terminals, the most of them (8) from loopback")
	})
}

// From however many addresses too many come, that is said at most once a second. What was not said is not over.
func TestManyAddresses(t *testing.T) {
	serve(t, 0, 1, func(d *desk) {
		for i := range 100 {
			d.come(1, fmt.Sprintf("10.0.0.%d:1", i))
			d.visit(fmt.Sprintf("10.0.0.%d:1", i)).Close()
		}
		d.mustHave(100, 0, 100)
		d.mustSay("too many terminals from 10.0.0.0: 1; further ones are refused")
		time.Sleep(time.Second)
		d.visit("10.0.0.0:1").Close()
		d.visit("10.0.0.99:1").Close()
		d.visit("10.0.0.98:1").Close()
		d.mustSay("too many terminals from 10.0.0.99: 1; further ones are refused")
		d.leave(100)
		d.mustSay("terminals from 10.0.0.0 are let in again", "terminals from 10.0.0.99 are let in again")
	})
}

// However fast the same come and go, each limit is said at most once a second.
func TestComeAndGo(t *testing.T) {
	serve(t, 1, 1, func(d *desk) {
		full, too := "10.0.0.8:1", "10.0.0.7:1" // to one it is full, the other is too many: that counts first
		said := map[string]string{
			full: "the server is full: 1 terminals, the most of them (1) from 10.0.0.7",
			too:  "too many terminals from 10.0.0.7: 1; further ones are refused",
		}
		for _, two := range [][2]string{{full, too}, {too, full}, {full, too}} {
			turn := func() {
				d.come(1, too)
				d.visit(two[0]).Close()
				d.visit(two[1]).Close()
				d.leave(1)
			}
			turn()
			d.mustSay(said[two[0]], said[two[1]], "there is room again", "terminals from 10.0.0.7 are let in again")
			turn()
			time.Sleep(time.Second - time.Nanosecond)
			turn()
			d.mustSay()
			time.Sleep(time.Nanosecond)
		}
		d.mustHave(9, 9, 9)
	})
}

// A thousand are being refused at once; who comes to a full server then waits, and is seen to once one of them is gone.
func TestMaxRefusals(t *testing.T) {
	serve(t, 1, 0, func(d *desk) {
		d.come(1002, "10.0.0.7:1")
		d.mustHave(1, 1000, 0) // the last is accepted, but not seen to
		d.leave(2)             // who was let in, and one who was refused
		d.mustHave(1, 1001, 0)
		d.come(2, "10.0.0.7:1") // the second waits as well
		d.end()
		d.mustHave(2, 1001, 0)
		if _, err := d.clients[len(d.clients)-2].Write([]byte{0}); err != nil {
			t.Error("who is in at the end does not go on:", err)
		}
		d.mustClose(d.clients[len(d.clients)-1])
	})
}

// Nobody waits for too many from another address: past a thousand of them they are let go without a word.
func TestTooManyDoNotWait(t *testing.T) {
	serve(t, 0, 1, func(d *desk) {
		d.come(1001, "10.0.0.7:1")
		d.mustClose(d.visit("10.0.0.7:1"))
		d.mustHave(1, 0, 1000)
		d.come(1, "10.0.0.8:1")
		d.leave(2)
		d.come(2, "10.0.0.7:1")
		d.mustHave(3, 0, 1001)
	})
}
