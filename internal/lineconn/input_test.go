package lineconn

import (
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// tooLong is what readLine adds to a line that is too long.
const tooLong = "(the line is too long (at most 1024 bytes))"

// inputs are what a peer may send, and the lines that ReadLine returns, each followed by a bar.
var inputs = []struct{ input, want string }{
	{input: "", want: ""},
	{input: "100\n72\n\n  73 \nlast\r", want: "100|72||73|last|"},
	{input: " \t a  b \t\r\n  \r\n\xfe\x1b[2J\n ", want: "a  b||\xfe\x1b[2J||"},
	{input: x(64) + "\n" + x(63) + "\n" + x(64), want: x(64) + "|" + x(63) + "|" + x(64) + "|"}, // the buffer holds 64
	{input: x(1024) + "\n" + x(1024) + "\r\n" + x(1024), want: x(1024) + "|" + x(1024) + "|" + x(1024) + "|"},
	{input: "ok\n" + x(1024) + "\r", want: "ok|" + x(1024) + "|"},
	{input: x(1025) + "\nok\n" + x(1025) + "\r\n", want: x(1024) + tooLong + "|ok|" + x(1024) + tooLong + "|"},
	{input: x(1024) + "\r\r\nok\n" + x(9000), want: x(1024) + tooLong + "|ok|" + x(1024) + tooLong + "|"},
	{input: x(3000) + "\nok", want: x(1024) + tooLong + "|ok|"},
	{input: "  " + x(1020) + "   y\n", want: x(1020) + tooLong + "|"},
	// Telnet: options, an interrupt, the byte 255, subnegotiations, commands that are invalid or incomplete.
	{input: "\xff\xfd\x067\xff\xfb\n2\xff\xfc\xff\xff\xfe\xf0\r\n", want: "72|"},
	{input: "ab\xff\xf4\xff\xfd\x06c\na\xff\xffb\n\xff\xff\n", want: "abc|a\xffb|\xff|"},
	{input: "7\xff\xfa\x1f\x00\n\xff\xff\xf0\xff\x00\xff\xf02\n", want: "72|"},
	{input: "72\n73\xff\xfa\n\xff", want: "72|73|"},
	{input: "7\xff\xf02\n7\xff2\xff\n73\xff\xef\n72\xff", want: "72|72|73\xef|72|"},
	{input: "7\xfa2\n\xf0\xfb\xfd7\n3\xfa", want: "7\xfa2|\xf0\xfb\xfd7|3\xfa|"}, // typed; 0xfa would be SB
	{input: x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n", want: x(1024) + "|"},
}

// readLines returns the lines that ReadLine returns for input that arrives in chunks of these sizes.
func readLines(t *testing.T, input string, sizes []byte) (lines string) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t, newPool(t, 1))
		go func() {
			for i, n := 0, 0; input != ""; i++ {
				n = min(len(input), max(1, int(sizes[i%len(sizes)])))
				io.WriteString(c.peer, input[:n])
				input = input[n:]
			}
			c.peer.Close()
		}()
		line, err := c.ReadLine()
		for ; err == nil || err == ErrTooLong; line, err = c.ReadLine() {
			if err != nil {
				line += tooLong
			}
			lines += line + "|"
		}
		wantResult(t, readLine(c), "(EOF)")
		wantErr(t, c.Conn, nil)
	})
	return lines
}

// FuzzReadLine checks that lines do not depend on how the input is split, and what the lines of inputs are. (Without
// -fuzzminimizetime 1s, Go spends most of its time on minimizing.)
func FuzzReadLine(f *testing.F) {
	known := map[string]string{}
	for _, tt := range inputs {
		known[tt.input] = tt.want
		for _, sizes := range []string{"\x01", "\x07", "\x3f", "\x40", "\x03\xc8"} {
			f.Add(tt.input, []byte(sizes))
		}
	}
	f.Fuzz(func(t *testing.T, input string, sizes []byte) {
		want, ok := known[input]
		if !ok {
			want = readLines(t, input, []byte{255})
		}
		if got := readLines(t, input, slices.Concat(sizes, []byte{64})); got != want {
			t.Errorf("%.100q in chunks of %v: got %.100q, want %.100q", input, sizes, got, want)
		}
	})
}

// After a burst of 100, ReadLine returns one line per 20 ms. A quiet peer earns a new burst, but never more than one.
// ReadLine returns the start of an endless line immediately. It discards the rest, and telnet commands, at a rate of 64
// bytes per 20 ms.
func TestReadLineRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPipeConn(t, newPool(t, 1))
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
			{quiet: time.Hour, lines: 1, want: x(1024) + tooLong},
			{lines: 1, want: "ok", took: 4 * time.Second}, // 300 reads, less the burst
		} {
			time.Sleep(tt.quiet)
			start := time.Now()
			for range tt.lines {
				if line := <-readLine(c); line != tt.want {
					t.Fatalf("%+v: got %.100q", tt, line)
				}
			}
			if took := time.Since(start); took != tt.took {
				t.Errorf("%+v: took %v", tt, took)
			}
		}
	})
}
