package lineconn

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"
)

const (
	// MaxLine is the longest line in bytes, without its newline and a carriage return before that.
	MaxLine = 1024

	readBuffer = 64                    // bytes: lines are short, and there is one buffer a connection
	dropBuffer = 4 << 10               // bytes: for input that is dropped before the close
	burst      = 100                   // pieces of input that are served as fast as they come
	pause      = 20 * time.Millisecond // for each piece beyond them
	linger     = time.Second           // how long unread input is dropped before the close
)

// ErrTooLong is the error of a line of more than MaxLine bytes.
var ErrTooLong = errors.New("the line is too long")

// ReadLine returns the next line, without telnet's own bytes and the spaces around it. It reads only when the peer has taken
// all that it was told: so nobody takes more from a peer than it takes back. A last line without a newline counts when
// the input ends, before io.EOF. A line of more than MaxLine bytes is ErrTooLong, together with its first MaxLine bytes;
// the rest is dropped unread. Whoever sends more than a person types or pastes is slowed down, to one piece each pause.
// After End, or when the connection has failed, the error is not io.EOF.
//
// Here a goroutine waits for most of its life, so it calls Read itself: each frame in between would be on every stack.
func (c *Conn) ReadLine() (typed string, err error) {
	c.Flush()
	var line []byte // so far
	for {
		if err := c.Err(); err != nil {
			return "", err
		}
		piece := c.piece()
		if piece == nil && !c.inOver {
			n, err := c.net.Read(c.in[c.inEnd:])
			c.take(n, err)
			continue
		}
		if piece == nil && len(line) == 0 {
			return "", io.EOF
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
			return strings.TrimSpace(string(text[:MaxLine])), ErrTooLong
		}
		if ended {
			return strings.TrimSpace(string(text)), nil
		}
	}
}

// take takes in what a Read has returned: n bytes behind in[:inEnd], and an error.
func (c *Conn) take(n int, err error) {
	typed := c.in[:c.inEnd]
	for _, b := range c.in[c.inEnd : c.inEnd+n] {
		if c.telnet.typed(b) {
			typed = append(typed, b)
		}
	}
	if len(typed) < c.inEnd+n {
		c.pace() // what is dropped becomes no piece, but is not free either
	}
	c.inEnd = len(typed)
	c.inOver = err == io.EOF
	if err != nil && !c.inOver && c.Err() == nil {
		c.fail(err)
	}
}

// piece takes from the buffer what belongs to one line: up to its end, or a full buffer of a longer one; at the end of
// the input, the rest. It returns nil when there must be more input first, for which there is room then. A piece is
// valid until the next Read.
func (c *Conn) piece() []byte {
	held := c.in[c.inStart:c.inEnd]
	n := bytes.IndexByte(held, '\n') + 1
	if n == 0 && (len(held) == len(c.in) || c.inOver) {
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
	time.Sleep(c.paidFor.Sub(now) - burst*pause)
}

// telnet is what the bytes so far make of the next one.
type telnet byte

const (
	text    telnet = iota // it was typed
	command               // it follows IAC
	option                // it follows IAC and WILL, WONT, DO or DONT
	inside                // it is what one program tells the other, from IAC SB to IAC SE
	leaving               // it follows IAC there
)

// typed reports whether b, the next byte, was typed; else it is telnet's own (RFC 854).
func (t *telnet) typed(b byte) bool {
	const se, sb, will, iac = 240, 250, 251, 255
	switch was := *t; {
	case was == text && b == iac:
		*t = command
	case was == command && b == sb, was == inside && b != iac, was == leaving && b != se:
		*t = inside
	case was == inside:
		*t = leaving
	case was == command && will <= b && b < iac:
		*t = option
	default:
		*t = text
		return was == text || was == command && (b < se || b == iac) // no command: a stray IAC takes no newline with it
	}
	return false
}
