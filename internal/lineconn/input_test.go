package lineconn

import (
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// FuzzReadLine compares ReadLine with a simple function that parses the whole input, whatever the sizes of the reads.
// (Without -fuzzminimizetime 1s, Go spends most of its time on minimizing.)
func FuzzReadLine(f *testing.F) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, input := range []string{
		"",
		"100\n72\n\n  73 \n",
		" \t a  b \t\r\n  \r\n",
		"a\nlast\r",
		"\x00a\x00\n\xfe\x1b[2J\nlast",
		x(64) + "\n" + x(63) + "\n" + x(64), // as long as the buffer
		x(1024) + "\n" + x(1024) + "\r\n" + x(1024),
		"ok\n" + x(1024) + "\r",
		x(1025) + "\nok\n" + x(1025) + "\r\n" + x(1025),
		x(1024) + "\r\r\nok\n" + x(9000),
		x(1088) + "\n" + x(3000) + "\nok",
		"  " + x(1020) + "   y\n",
		// Telnet: options, an interrupt, the byte 255, a subnegotiation, invalid commands, typed bytes that look like
		// commands (0xfa is SB), and a line that is short without its commands.
		"\xff\xfd\x067\xff\xfb\n2\xff\xfc\xff\xff\xfe\xf0\r\n",
		"ab\xff\xf4\xff\xfd\x06c\na\xff\xffb\n\xff\xff\n",
		"7\xff\xfa\x1f\x00\n\xff\xff\xf0\xff\x00\xff\xf02\n",
		"72\n73\xff\xfa\n\xff",
		"7\xff\xf02\n7\xff2\xff\n73\xff\xef\n72\xff",
		"7\xfa2\n\xf0\xfb\xfd7\n3\xfa",
		x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n",
	} {
		for _, sizes := range []string{"\x01", "\x07", "\x3f", "\x40", "\x03\xc8"} {
			f.Add(input, []byte(sizes))
		}
	}
	f.Fuzz(func(t *testing.T, input string, sizes []byte) {
		want := parse(input)
		synctest.Test(t, func(t *testing.T) {
			c := newPipeConn(t, newPool(t, 1))
			go func() {
				sizes = append(sizes, 64)
				for i, rest := 0, input; rest != ""; i++ {
					n := min(len(rest), max(1, int(sizes[i%len(sizes)])))
					io.WriteString(c.peer, rest[:n])
					rest = rest[n:]
				}
				c.peer.Close()
			}()
			var got []string
			line, err := c.ReadLine()
			for ; err == nil || err == ErrTooLong; line, err = c.ReadLine() {
				if err != nil {
					line += tooLong
				}
				got = append(got, line)
			}
			if !slices.Equal(got, want) || err != io.EOF {
				t.Errorf("%.100q in reads of %v: got %.100q and %v, want %.100q and EOF", input, sizes, got, err, want)
			}
			wantResult(t, async(c.ReadLine), "(EOF)") // again
			wantErr(t, c.Conn, nil)
		})
	})
}

// tooLong marks a line that is too long.
const tooLong = " and more"

// telnetCommands matches telnet commands in a string that has one rune per byte. The group is the byte 255.
var telnetCommands = regexp.MustCompile(`(?s)ÿ(?:ú(?:[^ÿ]|ÿ[^ð])*(?:ÿð|ÿ?$)|[û-þ](?:.|$)|(ÿ)|[ð-ú]|)`)

// parse returns the lines of input.
func parse(input string) (lines []string) {
	var runes, typed string
	for _, b := range []byte(input) {
		runes += string(rune(b))
	}
	for _, r := range telnetCommands.ReplaceAllString(runes, "$1") {
		typed += string([]byte{byte(r)})
	}
	for line := range strings.Lines(typed) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if len(line) > 1024 {
			lines = append(lines, strings.TrimSpace(line[:1024])+tooLong)
		} else {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// After a burst of 100, ReadLine returns one line per 20 ms. A quiet peer earns a new burst, but never more than one.
// ReadLine returns the first part of an endless line immediately. It discards the rest and telnet commands, at a rate
// of 64 bytes per 20 ms.
func TestReadLineRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t, newPool(t, 1))
		go io.WriteString(c.peer, strings.Repeat("1\n", 360)+
			strings.Repeat("x", 200*64)+strings.Repeat("\xff\xf1", 100*32)+"\nok\n")
		wantLines := func(n int, each time.Duration) {
			t.Helper()
			for i := range n {
				start := time.Now()
				line, err := c.ReadLine()
				if took := time.Since(start); line != "1" || err != nil || took != each {
					t.Fatalf("line %d is %q, %v, and took %v; want %v", i, line, err, took, each)
				}
			}
		}
		wantLines(100, 0)
		wantLines(50, 20*time.Millisecond)
		time.Sleep(time.Second)
		wantLines(50, 0)
		wantLines(10, 20*time.Millisecond)
		time.Sleep(time.Hour)
		wantLines(100, 0)
		wantLines(50, 20*time.Millisecond)
		time.Sleep(time.Hour)
		wantResult(t, async(c.ReadLine), strings.Repeat("x", 1024)+"(the line is too long (at most 1024 bytes))")
		ok := async(c.ReadLine)
		time.Sleep(4*time.Second - time.Nanosecond) // 300 reads, less the burst
		wantResult(t, ok, blocked)
		time.Sleep(time.Nanosecond)
		wantResult(t, ok, "ok")
	})
}

// ReadLine returns no line before the peer has read everything that was sent to it.
func TestReadLineWaitsForOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t, newPool(t, 1))
		go io.WriteString(c.peer, "1\n2\n")
		for _, want := range []string{"1", "2"} {
			c.Tell("an")
			c.Tell("swer")
			flushed, line := async(c.flush), async(c.ReadLine)
			c.wantOutput(t, 5, "answe")
			time.Sleep(3 * time.Second)
			wantResult(t, flushed, blocked)
			wantResult(t, line, blocked)
			c.wantOutput(t, 1, "r")
			wantResult(t, flushed, "")
			wantResult(t, line, want)
		}
	})
}

// End makes a waiting ReadLine return, and every later call, even if there is more input.
func TestReadLineAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPool(t, 1)
		waiting, more := newPipeConn(t, w), newPipeConn(t, w)
		line := async(waiting.ReadLine)
		go io.WriteString(more.peer, "1\n2\n")
		wantResult(t, async(more.ReadLine), "1")
		wantResult(t, line, blocked)
		waiting.End("")
		more.End("")
		wantResult(t, line, ended)
		for range 2 {
			wantResult(t, async(waiting.ReadLine), ended)
			wantResult(t, async(more.ReadLine), ended)
		}
	})
}
