package lineconn

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// tooLong is what readLine adds to a line that is too long.
const tooLong = "(the line is too long (at most 1024 bytes))"

// inputs are what a peer may send, the lines that ReadLine returns, each followed by a bar, and what the peer gets.
var inputs = []struct{ input, want, answers string }{
	{input: "", want: ""},
	{input: "100\n72\n\n  73 \nlast\r", want: "100|72||73|last|"},
	{input: x(64) + "\n" + x(63) + "\n" + x(64), want: x(64) + "|" + x(63) + "|" + x(64) + "|"}, // the buffer holds 64
	{input: x(1024) + "\n" + x(1024) + "\r\n" + x(1024), want: x(1024) + "|" + x(1024) + "|" + x(1024) + "|"},
	{input: "ok\n" + x(1024) + "\r", want: "ok|" + x(1024) + "|"},
	{input: x(1025) + "\nok\n" + x(1025) + "\r\n", want: x(1024) + tooLong + "|ok|" + x(1024) + tooLong + "|"},
	{input: x(1024) + "\r\r\nok\r" + x(9000), want: x(1024) + "||ok|" + x(1024) + tooLong + "|"},
	{input: x(3000) + "\rok", want: x(1024) + tooLong + "|ok|"},
	{input: "  " + x(1020) + "   y\n", want: x(1020) + tooLong + "|"},
	// Line ends. A final line that is erased does not count.
	{input: "1\r\n2\r\x003\r4\n5\r\r6\n\n7\n\r8\r\n\n9\r\x00\x00\n72\x7f\b", want: "1|2|3|4|5||6||7||8||9|\x00|"},
	// What is blank at the ends of a line, and what is not.
	{input: " \t a  b \t\r\n  \r\n\xfe\x1b[2J\n ", want: "a  b||\xfe||"},
	{input: "\ufeff100\n \u200b\u00a0\ufeff7\u20602\u200d \u3000\u2060\n\u0085\u200f\n\xa0", want: "100|7\u20602||\xa0|"},
	// Keys that erase: UTF-8 characters, invalid bytes, more than there is, the line; nothing of a line that is too long.
	{input: "78\b2\n\b\x7f99\x7f\x7f\x7f72\naä€\U0001f600\xfe\xfe\b\b\b\x7f\x7fb\n", want: "72|72|ab|"},
	{input: "abc\x15\x157\xff\xf734\xff\xf8\xff\xf772\r\nä\x15", want: "72|"},
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
	{input: "7\xff\xfa\x1f\x00\n\xf0\xff\xf02\n", want: "72|"},
	{input: "72\n73\xff\xfa\n", want: "72|73|"},
	{input: "7\xff\xf02\n7\xff2\xff\n73\xff\xef\n72\xff", want: "72|72|73\xef|72|"},
	{input: "7\xfa2\n\xf0\xfb\xfd7\n3\xfa", want: "7\xfa2|\xf0\xfb\xfd7|3\xfa|"}, // typed; 0xfa would be SB
	{input: x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n", want: x(1024) + "|"},
}

// readLines returns the lines that ReadLine returns for input that arrives in chunks of these sizes, and what the peer
// gets meanwhile.
func readLines(t *testing.T, input string, sizes []byte) (lines, answers string) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go func() {
			for i, n := 0, 0; input != ""; i++ {
				n = min(len(input), max(1, int(sizes[i%len(sizes)])))
				io.WriteString(c.peer, input[:n])
				input = input[n:]
			}
			time.Sleep(time.Hour) // until all is read and answered
			c.peer.Close()
		}()
		go func() {
			got, _ := io.ReadAll(c.peer)
			answers = string(got)
		}()
		line := readLine(c)
		for ; line != "(EOF)" && c.Err() == nil; line = readLine(c) {
			lines += line + "|"
		}
		if err := c.Err(); err != nil || readLine(c) != "(EOF)" {
			t.Errorf("after the last line: %v", err)
		}
		synctest.Wait()
	})
	return lines, answers
}

// FuzzReadLine checks that lines and answers do not depend on how the input is split, and what those of inputs are.
// (Without -fuzzminimizetime 1s, Go spends most of its time on minimizing.)
func FuzzReadLine(f *testing.F) {
	known := map[string][2]string{}
	for _, tt := range inputs {
		known[tt.input] = [2]string{tt.want, tt.answers}
		for _, sizes := range []string{"\x01", "\x07", "\x3f", "\x40", "\x03\xc8"} {
			f.Add(tt.input, []byte(sizes))
		}
	}
	f.Fuzz(func(t *testing.T, input string, sizes []byte) {
		want, ok := known[input]
		if !ok {
			want[0], want[1] = readLines(t, input, []byte{255})
		}
		lines, answers := readLines(t, input, slices.Concat(sizes, []byte{64}))
		if got := [2]string{lines, answers}; got != want {
			t.Errorf("%.100q in chunks of %v: got lines and answers %.100q, want %.100q", input, sizes, got, want)
		}
	})
}

// After a burst of 100, ReadLine returns one line per 20 ms. A quiet peer earns a new burst, but never more than one. A
// line that is too long, and telnet commands, are read at a rate of 64 bytes per 20 ms.
func TestReadLineRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go io.WriteString(c.peer, strings.Repeat("1\n", 360)+x(200*64)+strings.Repeat("\xff\xf1", 100*32)+"\nok\n")
		for _, tt := range []struct {
			quiet time.Duration
			lines int
			want  string
			took  time.Duration
		}{
			{lines: 150, want: "1", took: time.Second},
			{quiet: time.Second, lines: 60, want: "1", took: 200 * time.Millisecond},
			{quiet: time.Hour, lines: 150, want: "1", took: time.Second},
			{quiet: time.Hour, lines: 1, want: x(1024) + tooLong, took: 4 * time.Second}, // 300 chunks, less the burst
			{lines: 1, want: "ok", took: 20 * time.Millisecond},
		} {
			time.Sleep(tt.quiet)
			start := time.Now()
			for range tt.lines {
				if line := readLine(c); line != tt.want {
					t.Fatalf("%+v: got %.100q", tt, line)
				}
			}
			if took := time.Since(start); took != tt.took {
				t.Errorf("%+v: took %v", tt, took)
			}
		}
	})
}

// A peer that sends telnet options and does not read is not read from either, so that few answers are pending. Once it
// reads, it gets all of them. No answer splits another message.
func TestOptionFlood(t *testing.T) {
	const options, do, wont = 100_000, "\xff\xfd\x06", "\xff\xfc\x06"
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t)
		go io.WriteString(c.peer, strings.Repeat(do, options)+"ok\n")
		var output []byte
		time.AfterFunc(29*time.Second, func() {
			if synctest.Wait(); c.pending == 0 || c.pending > readBuffer*messageCost {
				t.Errorf("%d bytes are pending", c.pending)
			}
			c.Tell("%s", x(9))
			output, _ = io.ReadAll(c.peer)
		})
		readLine(c)
		c.closeBecause(net.ErrClosed)
		synctest.Wait()
		if rest := strings.ReplaceAll(string(output), wont, ""); rest != x(9) || len(output) != options*len(wont)+9 {
			t.Errorf("the peer got %d bytes, with %.100q beside the answers", len(output), rest)
		}
	})
}
