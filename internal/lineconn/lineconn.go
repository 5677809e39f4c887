// Package lineconn holds a conversation in lines with a peer that nobody can trust, over any net.Conn: it may send too
// much, too fast or too long lines, read nothing, close one side or vanish.
//
// A [Server] accepts connections. Input is read by the one goroutine that calls [Conn.ReadLine]. Output is queued, which never
// waits, and written by a fixed crew of [WriterPool], so that a connection that has nothing to say costs one goroutine (its
// reader) and a few hundred bytes. A write that the kernel does not take at once is finished by a goroutine of its own,
// which ends with it: a peer that does not read holds up nobody else.
//
// A connection ends with End, which sends the last words, and Close, which waits until they are written. To cut off is to
// close at once.
package lineconn

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// StallTimeout is how long a peer may take nothing, although something waits for it, before it is cut off. It is longer
	// than the 10 s in which a slow one takes some: the kernel tells of what was taken only in chunks of up to 110 KB.
	// It is counted in steps, so that time in which this process did not run is one step at most.
	StallTimeout = 30 * time.Second

	// MaxPending is how many bytes of messages may wait for a peer; with more it is cut off. Each counts messageCost
	// more than its text. What all peers share does not count: a status, of which only the newest waits, and the text of
	// a notice of more than 16 KiB.
	MaxPending = 256 << 10

	messageCost = 128         // bytes, about what it takes to hold a message besides its text
	step        = time.Second // what one write may take before the peer's progress is looked at
	batch       = 64          // connections that a writer takes at once: few, so that all writers end at about the same time

	// A silent peer is asked for a sign of life first and then so often, until it has given none for so many times.
	keepAliveIdle     = 30 * time.Second
	keepAliveInterval = 10 * time.Second
	keepAliveCount    = 6
)

// ErrStalled is the error of a connection whose peer did not take what was sent to it.
var ErrStalled = errors.New("the peer does not read")

var errEnded = errors.New("the conversation has ended")

// Listen listens on a TCP address, host:port. What it accepts is fit for peers that nobody can trust: the kernel's
// buffers for one are bounded (on Linux), and one that is gone without a word is noticed within a minute of the first
// thing it was sent (on Linux), and within two minutes of silence.
func Listen(addr string) (*net.TCPListener, error) {
	config := listenConfig()
	config.SetMultipathTCP(false) // which does not know all of the options
	l, err := config.Listen(context.Background(), "tcp", addr)
	listener, _ := l.(*net.TCPListener) // nil if there is an error
	return listener, err
}

// WriterPool is the crew that writes for the connections it made.
type WriterPool struct {
	ready chan []*Conn // each connection of these has something to write, and nobody else sees to it
	done  sync.WaitGroup
}

// NewWriterPool starts a crew of n goroutines; one for each processor is enough, since none of them ever waits for a peer.
func NewWriterPool(n int) *WriterPool {
	w := &WriterPool{ready: make(chan []*Conn, 1024)}
	for range n {
		w.done.Go(func() {
			write := newTryWrite()
			for conns := range w.ready {
				writeAll(conns, write)
			}
		})
	}
	return w
}

// Close ends the crew. All of its connections must have been closed or cut off, and nobody may send to them any more.
func (w *WriterPool) Close() {
	close(w.ready)
	w.done.Wait()
}

// start has the crew write what waits for conns, or, if all places are taken, a helper of the moment: it never waits.
func (w *WriterPool) start(conns []*Conn) {
	for some := range slices.Chunk(conns, batch) {
		select {
		case w.ready <- some:
		default:
			go writeAll(some, newTryWrite())
		}
	}
}

// A tryWrite writes to a socket as much of p, which is not empty, as the kernel takes without waiting: n bytes. It serves
// one goroutine, the only one that writes to raw.
type tryWrite func(raw syscall.RawConn, p []byte) (n int)

// writeAll writes for each of conns what the kernel takes without waiting. If it takes nothing, for whatever reason, a
// patient write goes on, or finds out.
func writeAll(conns []*Conn, write tryWrite) {
	for _, c := range conns {
		n := 0
		for p := c.next(0); p != nil; p = c.next(n) {
			if n = write(c.raw, p); n == 0 {
				go c.writePatiently()
				break
			}
		}
	}
}

// Conn is one connection. Any goroutine may call its methods, but ReadLine and Close only one, its reader, and SetPrompt only
// the owner of its Group.
type Conn struct {
	net     net.Conn
	raw     syscall.RawConn // nil if net is no socket
	writers *WriterPool

	// The group's owner's:
	prompt string
	place  *list.Element // nil: in no group
	due    time.Time     // of the next broadcast

	mu      sync.Mutex    // guards what follows; held for a few instructions only
	busy    bool          // one goroutine, or one place in writers.ready, is seeing to the messages
	ended   bool          // no more messages, and no more input
	part    int32         // of begun, that is written next
	begun   *message      // is being written; nil: none
	offset  int           // in that part
	queue   []*message    // not yet begun
	waiting int           // the cost of begun and queue
	err     error         // why the connection is of no use any more
	changed chan struct{} // closed when what somebody waits for may have come; nil: nobody waits

	// The reader's:
	in             [readBuffer]byte // in[inStart:inEnd] is not yet part of a line
	inStart, inEnd int
	paidFor        time.Time // pieces are paid for, a pause each, until then
	inOver         bool      // there is no more input behind in
	skip           bool      // drop input up to the next newline
	telnet         telnet
}

// NewConn makes a connection of c, which it owns from then on.
func (w *WriterPool) NewConn(c net.Conn) *Conn {
	conn := &Conn{net: c, writers: w}
	if s, ok := c.(syscall.Conn); ok {
		conn.raw, _ = s.SyscallConn() // an error leaves nil: then every write is a patient one
	}
	return conn
}

// Tell sends c a text, formatted as by fmt.Sprintf, then its prompt. It does nothing on a connection that has ended or
// failed.
func (c *Conn) Tell(format string, args ...any) { c.say(fmt.Sprintf(format, args...)+c.prompt, false) }

// Show sends c a notice, then its prompt, in the way of Tell.
func (c *Conn) Show(n *Notice) { c.send(n.before(c.prompt), false) }

// End sends the last words, which may be empty: what is sent later is dropped, and ReadLine waits for no more input. A second
// End is no harm and says nothing.
func (c *Conn) End(words string) { c.say(words, true) }

// say sends a text, which is the last if last is true.
func (c *Conn) say(text string, last bool) {
	c.send(&message{parts: [][]byte{[]byte(text)}, cost: messageCost + len(text)}, last)
}

// send queues m, which is the last message if last is true, and has the crew write it.
func (c *Conn) send(m *message, last bool) {
	if c.queueUp(m, last) {
		c.writers.start([]*Conn{c})
	}
}

// queueUp puts m into the queue, and reports whether the caller must start the writers, since nobody sees to it yet. If
// too much waits, the peer is cut off.
func (c *Conn) queueUp(m *message, last bool) bool {
	c.mu.Lock()
	if c.err != nil || c.ended {
		c.mu.Unlock()
		return false
	}
	if c.ended = last; last {
		c.net.SetReadDeadline(time.Unix(1, 0)) // ends a Read; set before Close sets its own
	}
	if m.replaceable {
		c.queue = slices.DeleteFunc(c.queue, func(old *message) bool { return old.replaceable })
	}
	if c.waiting+m.cost > MaxPending {
		c.mu.Unlock()
		c.fail(ErrStalled)
		return false
	}
	c.queue = append(c.queue, m)
	c.waiting += m.cost
	idle := !c.busy
	c.busy = true
	c.mu.Unlock()
	return idle
}

// next notes that n bytes more are written and returns those to write now. It returns nil when there are none: then the
// caller no longer sees to the messages.
func (c *Conn) next(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += n
	for c.begun != nil || len(c.queue) > 0 {
		if c.begun == nil {
			c.begun = c.queue[0]
			c.queue = slices.Delete(c.queue, 0, 1)
		}
		for ; int(c.part) < len(c.begun.parts); c.part, c.offset = c.part+1, 0 {
			if rest := c.begun.parts[c.part][c.offset:]; len(rest) > 0 {
				return rest
			}
		}
		c.waiting -= c.begun.cost
		c.begun, c.part = nil, 0
	}
	if cap(c.queue) > 4 {
		c.queue = nil // it is kept only while it is short
	}
	c.free()
	return nil
}

// writePatiently writes what waits, at the pace of the peer. It cuts a peer off that takes nothing in as many steps in a
// row as make up StallTimeout.
func (c *Conn) writePatiently() {
	n, idle := 0, 0
	for p := c.next(0); p != nil; p = c.next(n) {
		before := unsentBytes(c.raw)
		var err error
		c.net.SetWriteDeadline(time.Now().Add(step))
		n, err = c.net.Write(p)
		c.net.SetWriteDeadline(time.Time{}) // no timer is left behind

		// The kernel takes more only when a third of its buffer is free.
		if n > 0 || unsentBytes(c.raw) < before {
			idle = 0
		} else if idle++; idle == int(StallTimeout/step) {
			err = ErrStalled
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.fail(err)
			return
		}
	}
}

// fail closes the connection because of err, unless it has failed before. What waits is not sent any more.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.free()
	if s, ok := c.net.(interface{ SetLinger(sec int) error }); ok && err == ErrStalled {
		s.SetLinger(0) // the kernel drops what it holds for the peer
	}
	c.net.Close()
}

// free notes that nobody sees to the messages any more, and wakes those who wait. The caller holds mu.
func (c *Conn) free() {
	c.busy = false
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// wait waits until all that was sent is written, the last words among it if it is for End, or the connection has failed.
func (c *Conn) wait(forEnd bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && (c.busy || forEnd && !c.ended) {
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		<-changed
		c.mu.Lock()
	}
}

// Err says why there is no more to say and to ask: ErrStalled, net.ErrClosed after Close and CloseNow, what the network
// said, or that End was called; nil if there is.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.ended {
		return errEnded
	}
	return c.err
}

// Flush waits until the kernel has all that was sent, or the connection has failed.
func (c *Conn) Flush() { c.wait(false) }

// Close waits for End and until all is written, then closes the connection so that the last words arrive: a close with
// input unread would destroy them, so the own side is ended first and input dropped, at a measured pace, until the peer
// ends its side or linger is over. If the connection has failed, it returns at once.
func (c *Conn) Close() {
	c.wait(true)
	if half, ok := c.net.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		c.net.SetReadDeadline(time.Now().Add(linger))
		buf := c.in[:] // is enough to wait with, which is all that most do
		for _, err := c.net.Read(buf); err == nil; _, err = c.net.Read(buf) {
			if len(buf) < dropBuffer {
				buf = make([]byte, dropBuffer)
			}
			time.Sleep(pause)
		}
	}
	c.CloseNow()
}

// CloseNow closes the connection at once and drops what waits.
func (c *Conn) CloseNow() { c.fail(net.ErrClosed) }
