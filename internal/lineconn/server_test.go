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

// desk is a listener with the troubles that a test wants it to have.
type desk struct {
	conns    chan net.Conn // nil: errno has changed
	closed   context.Context
	close    func()
	errno    atomic.Uintptr // what Accept complains of; 0: nothing
	deadline time.Time      // of Accept
	start    time.Time
	tries    []int64 // when Accept was called, in ms after start
}

func (d *desk) Accept() (net.Conn, error) {
	d.tries = append(d.tries, time.Since(d.start).Milliseconds())
	var expired <-chan time.Time
	if !d.deadline.IsZero() {
		expired = time.After(time.Until(d.deadline))
	}
	if d.errno.Load() == 0 {
		select {
		case conn := <-d.conns:
			if conn != nil {
				return conn, nil
			}
		case <-expired:
			return nil, os.ErrDeadlineExceeded
		case <-d.closed.Done():
			return nil, net.ErrClosed
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.Errno(d.errno.Load())}
}

func (d *desk) SetDeadline(t time.Time) error { d.deadline = t; return nil }
func (d *desk) Close() error                  { d.close(); return nil }
func (d *desk) Addr() net.Addr                { return nil }

// serve plays a script with a server. It is noted what the console says, and how everybody is met who came, or had
// waited: by its network address, full or too many. Who is met stays until the client leaves. At the end Serve ends at
// once, Wait when the last has left, and nothing is left of them.
func serve(t *testing.T, places, perAddress int, script string) *desk {
	t.Helper()
	var d *desk
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d = &desk{conns: make(chan net.Conn), start: time.Now()}
		d.closed, d.close = context.WithCancel(t.Context())
		var staying atomic.Int32
		s := &Server{MaxConns: places, MaxPerAddress: perAddress, Log: log.New(io.Discard, " | ", 0)}
		meet := func(conn net.Conn, how string) {
			staying.Add(1)
			s.Log.Print(how)
			conn.Read(make([]byte, 1))
			conn.Close()
			staying.Add(-1)
		}
		s.Handle = func(conn net.Conn, from netip.Prefix) { meet(conn, name(from)) }
		s.Refuse = func(conn net.Conn, why error) {
			meet(conn, map[error]string{ErrFull: "full", ErrAddressFull: "too many"}[why])
		}
		ended, waited := make(chan bool), make(chan int32)
		go func() { s.Serve(ctx, d); close(ended) }()
		synctest.Wait() // it accepts
		var clients []net.Conn
		come := func(from string) {
			var addr net.Addr // of a pipe: none
			if ip, err := netip.ParseAddr(from); err == nil {
				addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 1))
			}
			conn, client := net.Pipe()
			d.conns <- &line{Conn: conn, from: addr}
			synctest.Wait()
			clients = append(clients, client)
		}
		visit := func(from string) {
			come(from)
			last := len(clients) - 1
			clients[last].Close()
			clients = clients[:last]
		}
		play(t, script+"\nend", s.Log, map[string]func(string){
			"come":  come, // to stay
			"visit": visit,
			"nine-visit": func(from string) {
				for range 9 {
					visit(from)
				}
			},
			"leave": func(string) { // who came first
				clients[0].Close()
				clients = clients[1:]
			},
			"hear": func(who string) { // who came last, or so many before
				before := 0
				fmt.Sscan(who, &before)
				hear(s.Log, clients[len(clients)-1-before], "")
			},
			"trouble": func(what string) {
				d.errno.Store(map[string]uintptr{"EMFILE": uintptr(syscall.EMFILE), "ENFILE": uintptr(syscall.ENFILE)}[what])
				select {
				case d.conns <- nil: // if it waits in Accept
				default:
				}
			},
			"close": func(string) { d.close() },
			"end": func(string) {
				start := time.Now()
				cancel()
				<-ended
				if took := time.Since(start); took > 0 {
					t.Errorf("Serve ended after %v", took)
				}
			},
		})
		go func() { s.Wait(); waited <- staying.Load() }()
		for _, client := range clients {
			synctest.Wait()
			client.Close()
		}
		if n := <-waited; n > 0 || len(s.from) > 0 || s.all.size > 0 || d.closed.Err() == nil {
			t.Errorf("after Wait %d stay, %d are counted, by address %v; closed: %v", n, s.all.size, s.from, d.closed.Err())
		}
	})
	return d
}

// What the console says of trouble, and of 10.0.0.7.
const (
	noFiles = " | cannot accept terminals: accept tcp: too many open files; trying again, those connected go on"
	over    = " | accepting terminals again"
	full    = " | the server is full: 1 terminals, the most of them (1) from 10.0.0.7"
	room    = " | there is room again"
	many    = " | too many terminals from 10.0.0.7: 1; further ones are refused"
	again   = " | terminals from 10.0.0.7 are let in again"
)

// After an error Accept is tried again in 5 ms, then after twice as long each time,
// up to a second; that starts anew once a connection has been accepted, or the trouble is over.
func TestBackoff(t *testing.T) {
	d := serve(t, 0, 0, `
		trouble EMFILE`+noFiles+`
		wait 4s, trouble over, wait 1s, come pipe | loopback
		trouble EMFILE, wait 50ms, trouble over
		wait 1030ms`+over+`
		trouble EMFILE, wait 50ms`+noFiles)
	want := []int64{0, 5, 15, 35, 75, 155, 315, 635, 1275, 2275, 3275, 4275, 5000,
		5005, 5015, 5035, 5075, 6075, 6085, 6095, 6115, 6130}
	if !slices.Equal(d.tries, want) {
		t.Errorf("Accept was called at %v, want %v", d.tries, want)
	}
}

// Trouble is said once, however long it lasts, and once again when it is over: when a second has passed without an error.
func TestTroubleIsSaidOnce(t *testing.T) {
	// A connection and trouble again within a second is the same trouble. It is over a second after the next try, 275 ms
	// from then, whether somebody comes or not.
	script := func(somebody string) string {
		return `
			come pipe, wait 1h | loopback
			trouble EMFILE, wait 1h` + noFiles + `
			trouble over, wait 1s, come pipe, trouble ENFILE, wait 10s | loopback
			trouble over, wait 500ms` + somebody + `
			wait 774999999ns
			wait 1ns` + over
	}
	serve(t, 0, 0, script("")+script(", come pipe | loopback"))
}

// Neither the end of its context nor somebody else who closes the listener is trouble, and conversations go on. Some may
// end while others begin.
func TestServeEnds(t *testing.T) {
	serve(t, 0, 0, "nine-visit 10.0.0.7"+strings.Repeat(" | 10.0.0.7", 9))
	serve(t, 0, 1, "come 10.0.0.7, close, hear | 10.0.0.7")
	serve(t, 0, 1, "come 10.0.0.7, end, hear | 10.0.0.7")
}

// Max conversations are had at once, and MaxPerAddress with one network address, loopback and what is no IP address not
// counted. Who has the most places is named, whoever is refused.
func TestLimits(t *testing.T) {
	serve(t, 0, 2, `
		2 times come 10.0.0.7 | 10.0.0.7
		come ::ffff:10.0.0.7 | too many terminals from 10.0.0.7: 2; further ones are refused | too many
		come ::ffff:10.0.0.8 | 10.0.0.8
		come 10.0.0.8 | 10.0.0.8
		wait 1s, come 10.0.0.8 | too many terminals from 10.0.0.8: 2; further ones are refused | too many
		2 times come 2001:db8:1:2::1, wait 1s | 2001:db8:1:2::/64
		come 2001:db8:1:2:ffff:ffff:ffff:ffff | too many terminals from 2001:db8:1:2::/64: 2; further ones are refused | too many
		2 times come 2001:db8:1:3::1 | 2001:db8:1:3::/64
		2 times come fe80::1%eth0 | fe80::/64
		wait 1s, come fe80::2 | too many terminals from fe80::/64: 2; further ones are refused | too many
		leave`+again+`
		come 10.0.0.7 | 10.0.0.7
		come 10.0.0.7 | too many`)
	serve(t, 5, 1, `
		2 times come 127.1.2.3 | loopback
		come ::1, come ::ffff:127.0.0.1, come pipe | loopback | loopback | loopback
		come pipe | the server is full: 5 terminals, the most of them (5) from loopback | full
		9 times come pipe | full`)
	serve(t, 13, 0, `
		come 2001:db8::1 | 2001:db8::/64
		5 times come 10.0.0.8 | 10.0.0.8
		3 times come 10.0.0.7 | 10.0.0.7
		4 times come 127.0.0.1 | loopback
		visit 10.0.0.7 | the server is full: 13 terminals, the most of them (5) from 10.0.0.8 | full
		leave`+room+`
		leave, wait 1s, come 127.0.0.1 | loopback
		come 127.0.0.1 | loopback
		visit 10.0.0.7 | the server is full: 13 terminals, the most of them (6) from loopback | full`)
}

// A limit, of all or of an address, is said when somebody is refused, once until a tenth of the places is free.
func TestSaidOnce(t *testing.T) {
	script := func(refusal, reached, left string) string {
		return `
			29 times come 10.0.0.7 | 10.0.0.7
			wait 1h, visit 10.0.0.7` + reached + refusal + `
			visit 10.0.0.7` + refusal + `
			leave, wait 1h, come 10.0.0.7 | 10.0.0.7
			visit 10.0.0.7` + refusal + `
			leave
			leave` + left + `
			27 times leave`
	}
	all := script(" | full", " | the server is full: 29 terminals, the most of them (29) from 10.0.0.7", room)
	serve(t, 29, 0, all+all)
	one := script(" | too many", " | too many terminals from 10.0.0.7: 29; further ones are refused", again)
	serve(t, 0, 29, one+one)
}

// From however many addresses too many come, that is said at most once a second. What was not said is not over.
func TestManyAddresses(t *testing.T) {
	serve(t, 0, 1, `
		come 10.0.0.7 | 10.0.0.7
		visit 10.0.0.7`+many+` | too many
		come 10.0.0.8 | 10.0.0.8
		visit 10.0.0.8 | too many
		come 10.0.0.9 | 10.0.0.9
		wait 1s, visit 10.0.0.7 | too many
		visit 10.0.0.9 | too many terminals from 10.0.0.9: 1; further ones are refused | too many
		visit 10.0.0.8 | too many
		leave`+again+`
		leave, leave | terminals from 10.0.0.9 are let in again`)
}

// However fast the same come and go, each limit is said at most once a second. That of an address counts first.
func TestComeAndGo(t *testing.T) {
	const silent = `
		come 10.0.0.7, visit 10.0.0.7, visit 10.0.0.8, leave | 10.0.0.7 | too many | full
	`
	const second = silent + "wait 999999999ns" + silent + "wait 1ns"
	const fullFirst = `
		come 10.0.0.7, visit 10.0.0.8 | 10.0.0.7` + full + ` | full
		visit 10.0.0.7, leave` + many + ` | too many` + room + again + second
	const manyFirst = `
		come 10.0.0.7, visit 10.0.0.7 | 10.0.0.7` + many + ` | too many
		visit 10.0.0.8, leave` + full + ` | full` + room + again + second
	serve(t, 1, 1, fullFirst+manyFirst+fullFirst)
}

// A thousand are being refused at once; who comes to a full server then waits, and is seen to once one of them is gone.
// Nobody waits for too many from another address: past a thousand of them they are let go without a word.
func TestMaxRefusals(t *testing.T) {
	serve(t, 1, 0, `
		come 10.0.0.7 | 10.0.0.7
		come 10.0.0.7`+full+` | full
		999 times come 10.0.0.7 | full
		come 10.0.0.7, hear
		leave`+room+`
		leave | full
		come 10.0.0.7, come 10.0.0.7 | 10.0.0.7
		end, hear, hear 1 | (the end)`)
	serve(t, 0, 1, `
		come 10.0.0.7 | 10.0.0.7
		come 10.0.0.7`+many+` | too many
		999 times come 10.0.0.7 | too many
		come 10.0.0.7, hear, come 10.0.0.8 | (the end) | 10.0.0.8
		leave, leave`+again+`
		come 10.0.0.7 | 10.0.0.7
		come 10.0.0.7 | too many`)
}
