package lineconn

import (
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const tooLong = "(the line is too long (at most 1024 bytes))" // follows such a line in the output of readLine

// inputs are what a peer may send, the lines that ReadLine returns, each followed by a bar, and what the peer gets.
var inputs = []struct{ input, want, answers string }{
	{input: "100\n72\n\n  73 \nlast\r", want: "100|72||73|last|"},
	{input: x(64) + "\n" + x(63) + "\n" + x(64), want: x(64) + "|" + x(63) + "|" + x(64) + "|"}, // the buffer holds 64
	{input: x(1024) + "\n" + x(1024) + "\r\n" + x(1024), want: x(1024) + "|" + x(1024) + "|" + x(1024) + "|"},
	{input: x(1025) + "\nok\n" + x(1025) + "\r\n", want: x(1024) + tooLong + "|ok|" + x(1024) + tooLong + "|"},
	{input: x(1024) + "\r\r\nok\r" + x(9000), want: x(1024) + "||ok|" + x(1024) + tooLong + "|"},
	{input: "  " + x(1020) + "   y\n", want: x(1020) + tooLong + "|"},
	// Line ends. A final line that is erased does not count.
	{input: "1\r\n2\r\x003\r4\n5\r\r6\n\n7\n\r8\r\n\n9\r\x00\x00\n72\x7f\b", want: "1|2|3|4|5||6||7||8||9|\x00|"},
	// What is blank at the ends of a line, and what is not.
	{input: " \t a  b \t\r\n  \r\n\xfe\x1b[2J\n ", want: "a  b||\xfe||"},
	{input: "\ufeff100\n \u200b\u00a0\ufeff7\u20602\u200d \u3000\u2060\n\u0085\u200f\n\xa0", want: "100|7\u20602||\xa0|"},
	// Keys that erase: UTF-8 characters, invalid bytes, more than there is, the line; nothing of a line that is too long.
	{input: "78\b2\n\b\x7f99\x7f\x7f\x7f72\naä€\U0001f600\xfe\xfe\b\b\b\x7f\x7fb\n", want: "72|72|ab|"},
	{input: "abc\x15\x157\xff\xf734\xff\xf8\xff\xf7728\xff\xf7\r\nä\x15", want: "72|"},
	{input: x(1024) + "\b\b" + x(2) + "\n" + x(1025) + "\b\b\x15ok\n", want: x(1024) + "|" + x(1024) + tooLong + "|"},
	// Escape sequences: arrow keys, marks of a paste, Alt-7, and incomplete ones.
	{input: "\x1b[A7\x1bOD\x1b[1;5C2\x1b7\n\x1b[200~72\x1b[201~\n", want: "727|72|"},
	{input: "\x1b[[A72\x1b(B\n\x1b]0;a\a7\x1b]1\x1b\\2\n7\x1b]2\n\x1bp\u00ad\u20687\ufe0f\n", want: "72|72|7|7|"},
	{input: "72\x1b\n72\x1b[\r72\x1b[1;\r\n", want: "72|72|72|"},
	{input: "7\x1bO\b\x1b\x1b[A2\x1b[1\x7f\x1b\xff\xf11\x1bOä\n\x1b[", want: "1ä|"},
	// Telnet: options, an interrupt, the byte 255, subnegotiations, commands that are invalid or incomplete.
	{
		input: "\xff\xfd\x067\xff\xfb\n2\xff\xfc\xff\xff\xfe\xf0\r\n\xff\xfb\xff\xff\xfd\xff", want: "72|",
		answers: "\xff\xfc\x06\xff\xfe\n\xff\xfe\xff\xff\xfc\xff",
	},
	{input: "ab\xff\xf4\xff\xfd\x06c\na\xff\xffb\n\xff\xff\n", want: "abc|a\xffb|\xff|", answers: "\xff\xfc\x06"},
	{input: "7\xff\xfa\x1f\x00\n\xf0\xff\xf02\n73\xff\xfa\n", want: "72|73|"},
	{input: "7\xff\xf02\n7\xff2\xff\n73\xff\xef\n72\xff", want: "72|72|73\xef|72|"},
	{input: "7\xfa2\n\xf0\xfb\xfd7\n3\xfa", want: "7\xfa2|\xf0\xfb\xfd7|3\xfa|"}, // typed; 0xfa would be SB
	{input: x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n", want: x(1024) + "|"},
}

// readAll returns the lines and answers for input in chunks of this size.
func readAll(t *testing.T, input string, size int) (result [2]string) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go func() {
			for chunk := range slices.Chunk([]byte(input), size) {
				c.peer.Write(chunk)
			}
			time.Sleep(time.Hour) // until all is read and answered
			c.peer.Close()
		}()
		var answers []byte
		go func() { answers, _ = io.ReadAll(c.peer) }()
		for line := readLine(c); line != "(EOF)" && c.Err() == nil; line = readLine(c) {
			result[0] += line + "|"
		}
		if end := readLine(c); end != "(EOF)" {
			t.Errorf("after the end: %s", end)
		}
		synctest.Wait()
		result[1] = string(answers)
	})
	return result
}

// FuzzReadLine checks that lines and answers do not depend on how the input is split, and what those of inputs are.
func FuzzReadLine(f *testing.F) {
	known := map[string][2]string{}
	for _, tt := range inputs {
		known[tt.input] = [2]string{tt.want, tt.answers}
		for _, size := range []byte{1, 7, 63, 64, 200} {
			f.Add(tt.input, size)
		}
	}
	f.Fuzz(func(t *testing.T, input string, size byte) {
		want, ok := known[input]
		if !ok {
			want = readAll(t, input, 255)
		}
		if got := readAll(t, input, max(1, int(size))); got != want {
			t.Errorf("%.100q in chunks of %d: got %.100q, want %.100q", input, size, got, want)
		}
	})
}

// After a burst of 100, ReadLine returns one line per 20 ms. A quiet peer earns a new burst, but never more than one. A
// line that is too long, and telnet commands, are read at a rate of 64 bytes per 20 ms.
func TestReadLineRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go io.WriteString(c.peer, strings.Repeat("1\n", 360)+x(200*64)+strings.Repeat("\xff\xf1", 100*32)+"\n")
		take := func(lines int, want string, took time.Duration) {
			t.Helper()
			start := time.Now()
			for range lines {
				if line := readLine(c); line != want {
					t.Fatalf("got %.100q, want %.100q", line, want)
				}
			}
			if got := time.Since(start); got != took {
				t.Errorf("%d lines took %v, want %v", lines, got, took)
			}
		}
		take(150, "1", time.Second)
		time.Sleep(time.Second)
		take(60, "1", 200*time.Millisecond)
		time.Sleep(time.Hour)
		take(150, "1", time.Second)
		time.Sleep(time.Hour)
		take(1, x(1024)+tooLong, 4*time.Second) // 300 chunks, less the burst
	})
}

// A peer that sends telnet options and does not read is not read from either, so that few answers are pending.
func TestOptionFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go io.WriteString(c.peer, strings.Repeat("\xff\xfd\x06", 100_000))
		go c.ReadLine()
		time.Sleep(29 * time.Second)
		if synctest.Wait(); c.pending == 0 || c.pending > readBuffer*messageCost {
			t.Errorf("%d bytes are pending", c.pending)
		}
	})
}
