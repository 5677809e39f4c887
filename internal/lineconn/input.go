package lineconn

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	MaxLine       = 1024                  // bytes in the longest line, without its end
	readBuffer    = 64                    // bytes; small, because each connection has one, and lines are short
	burst         = 100                   // chunks of input that are accepted without delay
	chunkInterval = 20 * time.Millisecond // for each later chunk
	linger        = time.Second           // how long Close discards input
)

// ErrTooLong is the error of a line of more than MaxLine bytes.
var ErrTooLong = fmt.Errorf("the line is too long (at most %d bytes)", MaxLine)

// ReadLine returns the next line as it was typed: without erased characters, escape sequences and telnet commands, and
// without what is blank at its ends. Of a line of more than MaxLine bytes, in which later keys do not erase, it returns
// the first MaxLine with ErrTooLong. Before it reads, it waits until everything sent to the peer is written. So a peer
// must read to be read from. The last line of the input may lack its end; after it, the error is io.EOF. After End, and
// on a failed connection, it is another one. A peer that sends more than a person types or pastes is slowed down.
func (c *Conn) ReadLine() (string, error) {
	c.flush(false)
	line, complete := c.scan(nil)
	for n, err := 0, error(nil); !complete && err == nil; {
		c.flush(false) // answers to telnet
		if n, err = c.net.Read(c.buffer[:]); err != nil && err != io.EOF && c.Err() == nil {
			c.closeBecause(err)
		}
		c.unread = c.buffer[:n]
		if line, complete = c.scan(line); !complete {
			c.throttle()
		}
	}
	if err := c.Err(); err != nil || !complete && len(line) == 0 {
		return "", cmp.Or(err, io.EOF)
	}
	c.throttle()
	if len(line) > MaxLine {
		return strings.TrimFunc(string(line[:MaxLine]), blank), ErrTooLong
	}
	return strings.TrimFunc(string(line), blank), nil
}

// blank reports whether r shows nothing: a space, or a zero-width or format character, such as a byte order mark.
func blank(r rune) bool {
	return unicode.IsSpace(r) || unicode.In(r, unicode.Cf, unicode.Variation_Selector)
}

// scan moves input from unread to line, up to the end of the line, and reports whether that is reached.
func (c *Conn) scan(line []byte) ([]byte, bool) {
	for len(c.unread) > 0 {
		was := c.state
		b, typed := c.state.next(c.unread[0])
		c.unread = c.unread[1:]
		switch {
		case was == do: // the peer must be told that option b is refused, or it may wait for that
			c.send(newMessage([]byte{iac, byte(wont), b}), false)
		case was == will:
			c.send(newMessage([]byte{iac, byte(dont), b}), false)
		case b == '\n' && typed:
			return line, true
		case !typed, len(line) > MaxLine:
		case b == del, b == backspace:
			_, size := utf8.DecodeLastRune(line)
			line = line[:len(line)-size]
		case b == ctrlU:
			line = line[:0]
		default:
			line = append(line, b)
		}
	}
	return line, false
}

// throttle limits the rate of input: after a burst, it sleeps so that one chunk takes one chunkInterval. A chunk is a
// line, or one Read that completes no line.
func (c *Conn) throttle() {
	ahead := max(0, time.Until(c.nextFree)) + chunkInterval
	c.nextFree = time.Now().Add(ahead)
	time.Sleep(ahead - burst*chunkInterval)
}

// state says what the next byte of the input may be: typed at a keyboard, which also sends escape sequences, or part of
// the telnet protocol (RFC 854).
type state byte

const (
	text    state = iota
	afterCR       // LF or NUL, which belongs to the end of the line, or text
	escape        // follows ESC, ESC O, or ESC and bytes from 0x20 to 0x2f
	csi           // follows ESC [ and any number of bytes from 0x20 to 0x3f or [; one from 0x40 to 0x7e is the last
	title         // follows ESC ], which sets the title of a window; BEL or ESC \ is its end
	command       // follows IAC
	inside        // between IAC SB and IAC SE, where programs exchange options

	will, wont, do, dont state = 251, 252, 253, 254 // an option, which follows IAC and this code
)

const (
	bell, backspace, ctrlU, esc, del = 7, 8, 0x15, 0x1b, 0x7f  // keys
	se, ec, el, sb, iac              = 240, 247, 248, 250, 255 // telnet commands; EC, EL erase a character, a line
)

// next takes b, the next byte of the input, and returns the key that was typed, if any: '\n' for each end of a line,
// del for telnet's EC, and ctrlU for its EL. A byte that cannot be part of an escape sequence ends it and counts
// itself, so that no end of a line is lost.
func (s *state) next(b byte) (key byte, typed bool) {
	was := *s
	*s = text
	switch {
	case was >= will:
	case was == command && b == ec:
		return del, true
	case was == command && b == el:
		return ctrlU, true
	case was == command && byte(will) <= b && b < iac:
		*s = state(b)
	case was != command && b == iac: // IAC IAC is the byte 255
		*s = command
	case was == inside, was == command && b == sb:
		*s = inside
	case was == command && se <= b && b < iac:
	case was == afterCR && (b == '\n' || b == 0):
	case was == escape && '0' <= b && b <= '9': // Escape or Alt, pressed by mistake
		return b, true
	case was == escape && b == '[', was == csi && (' ' <= b && b <= '?' || b == '['):
		*s = csi
	case b == esc, was == escape && (b == 'O' || ' ' <= b && b <= '/'):
		*s = escape
	case was == escape && b == ']', was == title && b >= ' ':
		*s = title
	case was == title && b == bell:
	case (was == escape || was == csi) && ' ' <= b && b < del: // the last byte of the sequence
	case b == '\r':
		*s = afterCR
		return '\n', true
	default: // even after a stray IAC, so that it removes no line end
		return b, true
	}
	return b, false
}
