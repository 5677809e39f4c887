package accept

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// ---- Helpers ----

// fake is a listener that has the troubles a test wants it to have.
type fake struct {
	conns    chan net.Conn
	closed   chan struct{}
	close    sync.Once
	deadline time.Time // only Serve touches it

	mu    sync.Mutex
	err   error           // what Accept complains of
	start time.Time       // of the test
	tries []time.Duration // when Accept was called, after start
}

func newFake() *fake {
	return &fake{conns: make(chan net.Conn), closed: make(chan struct{}), start: time.Now()}
}

func (f *fake) Accept() (net.Conn, error) {
	f.mu.Lock()
	f.tries = append(f.tries, time.Since(f.start))
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: err}
	}
	var expired <-chan time.Time
	if !f.deadline.IsZero() {
		expired = time.After(time.Until(f.deadline))
	}
	select {
	case conn := <-f.conns:
		return conn, nil
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *fake) SetDeadline(t time.Time) error { f.deadline = t; return nil }
func (f *fake) Close() error                  { f.close.Do(func() { close(f.closed) }); return nil }
func (f *fake) Addr() net.Addr                { return nil }

// fail makes Accept fail with err, or succeed if that is nil, from its next call on.
func (f *fake) fail(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
}

// calls returns when Accept has been called since the last time.
func (f *fake) calls() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	tries := f.tries
	f.tries = nil
	return tries
}

// connect is a client: it reports whether it was accepted within a minute.
func (f *fake) connect() bool {
	conn, _ := net.Pipe()
	select {
	case f.conns <- conn:
		synctest.Wait()
		return true
	case <-time.After(time.Minute):
		return false
	}
}

// logged is what a server says.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// mustBe checks what was said since the last time: a line for each of want, which
// has its beginning.
func (l *logged) mustBe(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	same := len(l.lines) == len(want)
	for i := 0; same && i < len(want); i++ {
		same = strings.HasPrefix(l.lines[i], want[i])
	}
	if !same {
		t.Errorf("the server said %q, want %q", l.lines, want)
	}
	l.lines = nil
}

const (
	cannot = "cannot accept terminals"
	again  = "accepting terminals again"
)

// serve runs s on ln; the function that it returns ends that and checks that
// it takes no time.
func serve(t *testing.T, s *Server, ln *fake) (said *logged, stop func()) {
	t.Helper()
	said = new(logged)
	s.Log = log.New(said, "", 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Serve(ctx, ln); close(done) }()
	synctest.Wait()
	return said, func() {
		t.Helper()
		start := time.Now()
		cancel()
		<-done
		if took := time.Since(start); took != 0 {
			t.Errorf("Serve ended %v after its context", took)
		}
		select {
		case <-ln.closed:
		default:
			t.Error("the listener is open")
		}
	}
}

// closeIt is a conversation without a word.
func closeIt(conn net.Conn) { conn.Close() }

// ---- Errors ----

// After an error Accept is tried again in 5 ms, then after twice as long each time,
// up to a second; that starts anew once a connection has been accepted.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newFake()
		ln.fail(syscall.EMFILE)
		_, stop := serve(t, &Server{Handle: closeIt}, ln)
		defer stop()
		ms := func(ms ...int) (all []time.Duration) {
			for _, n := range ms {
				all = append(all, time.Duration(n)*time.Millisecond)
			}
			return all
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got, want := ln.calls(), ms(0, 5, 15, 35, 75, 155, 315, 635, 1275, 2275, 3275); !reflect.DeepEqual(got, want) {
			t.Errorf("Accept was called at %v, want %v", got, want)
		}

		ln.fail(nil)
		time.Sleep(time.Second) // past the end of the last wait
		ln.fail(syscall.EMFILE)
		if !ln.connect() { // at 5 s
			t.Fatal("not accepted after the trouble")
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if got, want := ln.calls(), ms(4275, 5000, 5005, 5015, 5035); !reflect.DeepEqual(got, want) {
			t.Errorf("Accept was called at %v, want %v", got, want)
		}
	})
}

// Trouble is said once, however long it lasts, and once again when it is over: when
// a second has passed without an error.
func TestTroubleIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newFake()
		var handled atomic.Int64
		said, stop := serve(t, &Server{Handle: func(conn net.Conn) { handled.Add(1); conn.Close() }}, ln)
		defer stop()
		ln.connect()
		time.Sleep(time.Hour)
		said.mustBe(t) // no trouble

		for _, somebody := range []bool{false, true} { // the second trouble is said as the first
			// The trouble is met after the next connection.
			ln.fail(syscall.EMFILE)
			ln.connect()
			said.mustBe(t, cannot+": accept tcp: "+syscall.EMFILE.Error())
			time.Sleep(time.Hour)
			said.mustBe(t)

			// A connection, and trouble again within a second: that is the same one.
			ln.fail(nil)
			time.Sleep(time.Second)
			ln.fail(syscall.ENFILE)
			ln.connect()
			time.Sleep(10 * time.Second)
			said.mustBe(t)

			// A second after the next try, 275 ms from now, it is over, whether somebody comes or not.
			ln.fail(nil)
			time.Sleep(500 * time.Millisecond)
			if somebody {
				ln.connect()
			}
			time.Sleep(775*time.Millisecond - time.Nanosecond)
			said.mustBe(t)
			time.Sleep(time.Nanosecond)
			said.mustBe(t, again)
			time.Sleep(time.Hour)
			ln.connect()
			said.mustBe(t)
		}
		synctest.Wait()
		if n := handled.Load(); n != 8 {
			t.Errorf("%d connections were handled, want 8", n)
		}
	})
}

// ---- The end ----

// The end of its context ends Serve at once, whatever it is at.
func TestContextEnds(t *testing.T) {
	for _, err := range []error{nil, syscall.EMFILE} {
		synctest.Test(t, func(t *testing.T) {
			ln := newFake()
			ln.fail(err)
			said, stop := serve(t, &Server{Handle: closeIt}, ln)
			time.Sleep(10*time.Second + time.Millisecond) // in Accept, or in a wait of a second
			stop()
			if err == nil {
				said.mustBe(t)
			}
		})
	}
}

// Somebody else closing the listener is an end as well, not trouble.
func TestListenerClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newFake()
		said, stop := serve(t, &Server{Handle: closeIt}, ln)
		ln.Close()
		time.Sleep(time.Minute)
		if n := len(ln.calls()); n != 1 {
			t.Errorf("Accept of a closed listener was called %d times", n)
		}
		said.mustBe(t)
		stop()
	})
}

// Over a real socket: connections are handled, and when the context is done
// nobody is let in any more, but who is in goes on.
func TestSocket(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	echo := func(conn net.Conn) { defer conn.Close(); io.Copy(conn, conn) }
	s := &Server{Handle: echo, Log: log.New(&said, "", 0)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { s.Serve(ctx, tcp.(*net.TCPListener)); close(done) }()

	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talk := func(word string) {
		t.Helper()
		got := make([]byte, len(word))
		io.WriteString(conn, word)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
			t.Errorf("the echo of %q is %q, %v", word, got, err)
		}
	}
	talk("hello")
	cancel()
	<-done
	if _, err := tcp.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end Accept returns %v, want that the listener is closed", err)
	}
	talk("still here")
	conn.Close()
	s.Wait()
	if said.Len() > 0 {
		t.Errorf("the server said %q", said.String())
	}
}

// ---- Limits ----

// desk is a server whose conversations, and leaves, last until the test ends them.
type desk struct {
	Server
	handled, refused    atomic.Int64
	endHandle, endLeave chan struct{} // one received: one ends
}

func newDesk(places int) *desk {
	d := &desk{endHandle: make(chan struct{}), endLeave: make(chan struct{})}
	d.Max = places
	d.Handle = func(conn net.Conn) { defer conn.Close(); d.handled.Add(1); <-d.endHandle }
	d.Refuse = func(conn net.Conn) { defer conn.Close(); d.refused.Add(1); <-d.endLeave }
	return d
}

// mustHave checks how many were handled and refused in all.
func (d *desk) mustHave(t *testing.T, handled, refused int64) {
	t.Helper()
	synctest.Wait()
	if h, r := d.handled.Load(), d.refused.Load(); h != handled || r != refused {
		t.Errorf("%d were handled and %d refused, want %d and %d", h, r, handled, refused)
	}
}

// Max are handled at once, the next is refused, and a place that becomes free is
// given to who comes next. Nobody waits for a leave that takes its time.
func TestMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, ln := newDesk(3), newFake()
		_, stop := serve(t, &d.Server, ln)
		for range 3 {
			ln.connect()
		}
		d.mustHave(t, 3, 0)
		ln.connect()
		ln.connect()
		d.mustHave(t, 3, 2)
		d.endHandle <- struct{}{}
		d.endHandle <- struct{}{}
		synctest.Wait()
		for range 3 {
			ln.connect()
		}
		d.mustHave(t, 5, 3)
		stop()
		close(d.endHandle)
		close(d.endLeave)
	})
}

// With Max 0 all are handled.
func TestNoMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, ln := newDesk(0), newFake()
		_, stop := serve(t, &d.Server, ln)
		for range 100 {
			ln.connect()
		}
		d.mustHave(t, 100, 0)
		stop()
		close(d.endHandle)
	})
}

// Only so many are being refused at once; who comes then waits, and is seen to
// as soon as one of them is gone.
func TestMaxRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, ln := newDesk(1), newFake()
		_, stop := serve(t, &d.Server, ln)
		ln.connect()
		for range maxRefusals {
			ln.connect()
		}
		d.mustHave(t, 1, maxRefusals)
		ln.connect() // accepted, but not seen to
		d.mustHave(t, 1, maxRefusals)
		if ln.connect() {
			t.Error("there are more refusals than allowed")
		}
		d.endLeave <- struct{}{}
		d.mustHave(t, 1, maxRefusals+1)
		d.endHandle <- struct{}{}
		d.endLeave <- struct{}{}
		synctest.Wait()
		ln.connect()
		d.mustHave(t, 2, maxRefusals+1)
		stop()
		close(d.endHandle)
		close(d.endLeave)
	})
}

// Wait returns as soon as the last conversation, or leave, is over.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stay := func(d time.Duration) func(net.Conn) {
			return func(conn net.Conn) { time.Sleep(d); conn.Close() }
		}
		s := &Server{Handle: stay(3 * time.Second), Refuse: stay(5 * time.Second), Max: 1}
		ln := newFake()
		_, stop := serve(t, s, ln)
		wait := func(want time.Duration) {
			t.Helper()
			start := time.Now()
			s.Wait()
			if took := time.Since(start); took != want {
				t.Errorf("Wait took %v, want %v", took, want)
			}
		}
		wait(0) // nobody is there
		ln.connect()
		ln.connect()
		stop()
		wait(5 * time.Second)
		wait(0)
	})
}
