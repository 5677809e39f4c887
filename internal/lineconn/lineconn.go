// Package lineconn holds a conversation in lines with a peer that nobody can
// trust, over any net.Conn: it may send too much, too fast or too long lines,
// read nothing, close one side or vanish.
//
// Input is read by the one goroutine that calls [Conn.ReadLine]. Output is
// queued by [Conn.Send], which never waits, and written by a fixed crew of
// [Writers], so that a connection that has nothing to say costs one goroutine
// (its reader) and a few hundred bytes. A write that the kernel does not take
// at once is finished by a goroutine of its own, which ends with it: a peer
// that does not read holds up nobody else, and is cut off after [Patience].
package lineconn

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxLine is the longest line in bytes, without its newline and a carriage
	// return before that.
	MaxLine = 1024

	// Patience is how long a peer may take for writeSize bytes, beyond what
	// the kernel's buffers hold for it, before it is cut off.
	Patience = 10 * time.Second

	// MaxWaiting is how many messages may wait for a peer; with one more it
	// is cut off. What waits is mostly shared with the other peers, so this
	// bounds what a stuck one costs by itself to 8 KiB of pointers. It is
	// far more than collects in Patience unless messages come very fast.
	MaxWaiting = 1024

	writeSize  = 64 << 10               // bytes in one write under a deadline
	readBuffer = 64                     // bytes: lines are short, and there is one buffer a connection
	burst      = 100                    // pieces of input that are served as fast as they come
	pause      = 20 * time.Millisecond  // for each read beyond them
	linger     = time.Second            // how long unread input is dropped before the close
	aLongAgo   = -1000000 * time.Second // relative to now: a deadline that has passed
)

var (
	// ErrTooLong is the error of a line of more than MaxLine bytes.
	ErrTooLong = errors.New("the line is too long")

	// ErrNotReading is the error of a connection whose peer did not take what
	// was sent to it.
	ErrNotReading = errors.New("the peer does not read")

	errWouldBlock = errors.New("the write would block")
)

// A Message is what is written as a whole. Any number of connections share one
// message and its bytes: nobody changes them after the first Send.
type Message struct {
	Parts [][]byte

	// A Replaceable message is dropped if another one is sent before it is
	// begun to be written: a status of which only the newest counts.
	Replaceable bool
}

// Text is a message of one string.
func Text(s string) *Message { return &Message{Parts: [][]byte{[]byte(s)}} }

// Writers is the crew that writes for the connections it made.
type Writers struct {
	ready chan []*Conn // each connection of these has something to write, and nobody else sees to it
	done  sync.WaitGroup
}

// batch is how many connections a member of the crew takes at once: enough that taking them
// costs little, and few enough that all members end at about the same time.
const batch = 64

// NewWriters starts a crew of n goroutines; one for each processor is enough,
// since none of them ever waits for a peer.
func NewWriters(n int) *Writers {
	w := &Writers{ready: make(chan []*Conn, 1024)}
	for range n {
		w.done.Go(func() {
			try := newTryWriter()
			for conns := range w.ready {
				try.writeAll(conns)
			}
		})
	}
	return w
}

// Close ends the crew. All of its connections must have been closed, and nobody
// may be sending to them any more.
func (w *Writers) Close() {
	close(w.ready)
	w.done.Wait()
}

// start has the crew write what waits for conns. It does not wait itself: if all places
// are taken, a helper of the moment does it.
func (w *Writers) start(conns []*Conn) {
	for some := range slices.Chunk(conns, batch) {
		select {
		case w.ready <- some:
		default:
			go newTryWriter().writeAll(some)
		}
	}
}

// writeAll writes for each of conns what the kernel takes without waiting.
func (t *tryWriter) writeAll(conns []*Conn) {
	for _, c := range conns {
		var n int
		var err error
		for p := c.next(0); p != nil; p = c.next(n) {
			if n, err = t.write(c.raw, p); err != nil {
				break
			}
		}
		switch {
		case err == errWouldBlock:
			go c.writePatiently()
		case err != nil:
			c.fail(err)
		}
	}
}

// Conn is one connection. Send, Flush, Finish and Close may be called from any
// goroutine, ReadLine and Hangup from one only.
type Conn struct {
	net     net.Conn
	raw     syscall.RawConn // nil if net is no socket
	writers *Writers

	mu       sync.Mutex  // guards what follows; held for a few instructions only
	busy     bool        // one goroutine, or one place in writers.ready, is seeing to the queue
	begun    bool        // queue[0] may be written in part
	finished bool        // no more messages
	queue    []*Message  // the messages not yet written; nil: none
	slots    [2]*Message // where a short queue stands
	part     int         // of queue[0], the part that is written next
	offset   int         // in that part
	err      error       // why the connection is of no use any more
	changed  chan struct{}

	membership // owned by the group's owner

	// Owned by the reader.
	in      [readBuffer]byte // input; in[inStart:inEnd] is not yet part of a line
	inStart int
	inEnd   int
	inErr   error     // that ended the input
	paidFor time.Time // pieces are paid for, a pause each, until then
	skip    bool      // drop input up to the next newline
}

// Conn makes a connection of c, which it owns from then on.
func (w *Writers) Conn(c net.Conn) *Conn {
	conn := &Conn{net: c, writers: w}
	if s, ok := c.(syscall.Conn); ok {
		conn.raw, _ = s.SyscallConn() // an error leaves nil: then every write is a patient one
	}
	return conn
}

// ReadLine returns the next line without its newline and the carriage return
// before that. A last line that has none counts when the input ends, before
// io.EOF. A line of more than MaxLine bytes is ErrTooLong, together with its
// first MaxLine bytes; the rest is dropped unread. Whoever sends more than a
// person types or pastes is slowed down here, to one piece each pause.
//
// Here a goroutine waits for most of its life, so it calls Read itself: each
// frame in between would be on every stack.
func (c *Conn) ReadLine() (string, error) {
	var line []byte // so far
	for {
		piece := c.piece()
		if piece == nil && c.inErr == nil {
			n, err := c.net.Read(c.in[c.inEnd:])
			c.inEnd += n
			c.inErr = err
			continue
		}
		if piece == nil && (c.inErr != io.EOF || len(line) == 0) {
			return "", c.inErr
		}
		c.pace()
		ended := piece == nil || piece[len(piece)-1] == '\n'
		if c.skip {
			c.skip = !ended
			continue
		}
		line = append(line, piece...)
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(text) > MaxLine {
			c.skip = !ended
			return string(text[:MaxLine]), ErrTooLong
		}
		if ended {
			return string(text), nil
		}
	}
}

// piece takes from the buffer what belongs to one line: up to its end, or a full
// buffer of a longer one; at the end of the input, the rest. It returns nil when there must be more input first, for which there is room then. A piece is
// valid until the next Read.
func (c *Conn) piece() []byte {
	held := c.in[c.inStart:c.inEnd]
	n := bytes.IndexByte(held, '\n') + 1
	if n == 0 && (len(held) == len(c.in) || c.inErr == io.EOF) {
		n = len(held)
	}
	if n == 0 {
		c.inStart, c.inEnd = 0, copy(c.in[:], held)
		return nil
	}
	c.inStart += n
	return held[:n]
}

// pace waits until the pieces so far are paid for, less the burst.
func (c *Conn) pace() {
	now := time.Now()
	if c.paidFor.Before(now) {
		c.paidFor = now
	}
	c.paidFor = c.paidFor.Add(pause)
	if debt := c.paidFor.Sub(now) - burst*pause; debt > 0 {
		time.Sleep(debt)
	}
}

// Send queues m and returns at once. It does nothing on a connection that is
// finished or closed. If too much waits already, the peer is cut off.
func (c *Conn) Send(m *Message) {
	if c.queueUp(m) {
		c.writers.start([]*Conn{c})
	}
}

// queueUp puts m into the queue, and reports whether the caller must start the
// writers, since nobody sees to it yet.
func (c *Conn) queueUp(m *Message) bool {
	c.mu.Lock()
	if c.err != nil || c.finished {
		c.mu.Unlock()
		return false
	}
	if m.Replaceable {
		c.dropReplaceable()
	}
	if len(c.queue) >= MaxWaiting {
		c.mu.Unlock()
		c.fail(ErrNotReading)
		return false
	}
	if c.queue == nil {
		c.queue = c.slots[:0]
	}
	c.queue = append(c.queue, m)
	idle := !c.busy
	c.busy = true
	c.mu.Unlock()
	return idle
}

// dropReplaceable takes the replaceable messages that are not begun out of the
// queue. The caller holds mu.
func (c *Conn) dropReplaceable() {
	from := 0
	if c.begun {
		from = 1
	}
	kept := slices.DeleteFunc(c.queue[from:], func(m *Message) bool { return m.Replaceable })
	c.queue = c.queue[:from+len(kept)]
}

// next notes that n bytes more are written and returns those to write now. It
// returns nil when there are none: then the caller no longer sees to the queue.
func (c *Conn) next(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += n
	for len(c.queue) > 0 && c.err == nil {
		m := c.queue[0]
		for c.part < len(m.Parts) {
			if rest := m.Parts[c.part][c.offset:]; len(rest) > 0 {
				c.begun = true
				return rest
			}
			c.part, c.offset = c.part+1, 0
		}
		c.part, c.begun = 0, false
		c.queue[0] = nil
		c.queue = c.queue[1:]
	}
	c.queue = nil
	c.busy = false
	c.signal()
	return nil
}

// writePatiently writes what waits, at the pace of the peer. It cuts a peer
// off that does not take writeSize bytes within Patience.
func (c *Conn) writePatiently() {
	var n int
	var err error
	for p := c.next(0); p != nil; p = c.next(n) {
		c.net.SetWriteDeadline(time.Now().Add(Patience))
		n, err = c.net.Write(p[:min(len(p), writeSize)])
		c.net.SetWriteDeadline(time.Time{}) // no timer is left behind
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ErrNotReading
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// fail closes the connection because of err and drops what waits.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		c.queue = nil
	}
	c.busy = false
	c.signal()
	c.mu.Unlock()
	c.net.Close()
}

// Err says why the connection is closed; nil if it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// signal wakes those who wait for a change. The caller holds mu.
func (c *Conn) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// await returns when the connection is closed or what is to come has come; it
// calls reached with mu held.
func (c *Conn) await(reached func() bool) {
	c.mu.Lock()
	for c.err == nil && !reached() {
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		<-changed
		c.mu.Lock()
	}
	c.mu.Unlock()
}

// Flush waits until the kernel has all that was sent, or the connection is
// closed. Whoever reads a line only after Flush takes no more from a peer than
// the peer takes back.
func (c *Conn) Flush() { c.await(func() bool { return !c.busy }) }

// Finish says that what was sent is the end: later messages are dropped, and
// ReadLine waits for no more input. To finish twice is no harm.
func (c *Conn) Finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.finished {
		c.net.SetReadDeadline(time.Now().Add(aLongAgo)) // before Hangup sets its own
		c.finished = true
		c.signal()
	}
}

// Hangup waits for Finish and until all is written, then closes the
// connection so that the last words arrive: a close with input unread would
// destroy them, so the own side is ended first and input dropped, at a measured
// pace, until the peer ends its side or linger is over.
func (c *Conn) Hangup() {
	c.await(func() bool { return c.finished && !c.busy })
	half, ok := c.net.(interface{ CloseWrite() error })
	if ok && c.Err() == nil && half.CloseWrite() == nil {
		c.net.SetReadDeadline(time.Now().Add(linger))
		for buf := make([]byte, 4<<10); ; time.Sleep(pause) {
			if _, err := c.net.Read(buf); err != nil {
				break
			}
		}
	}
	c.Close()
}

// Close closes the connection at once and drops what waits.
func (c *Conn) Close() { c.fail(net.ErrClosed) }
