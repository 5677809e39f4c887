package lineconn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// answer is what Ask returned.
type answer struct {
	typed string
	err   error
}

// String shows an answer to a person.
func (a answer) String() string { return fmt.Sprintf("%s, %v", short(a.typed), a.err) }

// askAll returns what Ask returns up to the first error that is not
// ErrTooLong, which is the second result.
func askAll(c *Conn) (answers []answer, end error) {
	for {
		typed, err := c.Ask()
		if err != nil && err != ErrTooLong {
			return answers, err
		}
		answers = append(answers, answer{typed, err})
	}
}

// split cuts input in pieces of the given sizes, in turns.
func split(input string, sizes ...int) (pieces []string) {
	for i := 0; input != ""; i++ {
		n := min(max(sizes[i%len(sizes)], 1), len(input))
		pieces = append(pieces, input[:n])
		input = input[n:]
	}
	return pieces
}

func TestAsk(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	tooLong := answer{x(1024), ErrTooLong}
	tests := []struct {
		name, input string
		want        []answer
	}{
		{"nothing", "", nil},
		{"one line", "hello\n", []answer{{"hello", nil}}},
		{"an empty line", "\n", []answer{{"", nil}}},
		{"several lines at once", "100\n72\n\n  73 \n", []answer{{"100", nil}, {"72", nil}, {"", nil}, {"73", nil}}},
		{"spaces", " \t a  b \t\r\n  \r\n", []answer{{"a  b", nil}, {"", nil}}},
		{"a last line without a newline", "a\nb", []answer{{"a", nil}, {"b", nil}}},
		{"a last line with a CR only", "a\nb\r", []answer{{"a", nil}, {"b", nil}}},
		{"NUL and other bytes", "\x00a\x00\n\xfe\x1b[2J\n", []answer{{"\x00a\x00", nil}, {"\xfe\x1b[2J", nil}}},
		{"as long as the buffer", x(64) + "\n" + x(63) + "\n" + x(64), []answer{{x(64), nil}, {x(63), nil}, {x(64), nil}}},
		{"1024 bytes", x(1024) + "\nok\n", []answer{{x(1024), nil}, {"ok", nil}}},
		{"1024 bytes and CRLF", x(1024) + "\r\nok\n", []answer{{x(1024), nil}, {"ok", nil}}},
		{"1024 bytes at the end", x(1024), []answer{{x(1024), nil}}},
		{"1024 bytes and a CR at the end", x(1024) + "\r", []answer{{x(1024), nil}}},
		{"1025 bytes", x(1025) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1025 bytes and CRLF", x(1025) + "\r\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1024 bytes and two CRs", x(1024) + "\r\r\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1025 bytes at the end", x(1025), []answer{tooLong}},
		{"1088 bytes", x(1088) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"a very long line", x(9000) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"a very long line to the end", x(9000), []answer{tooLong}},
		{"two long lines", x(3000) + "\n" + x(3000) + "\nok", []answer{tooLong, tooLong, {"ok", nil}}},
		{"spaces in a long line", "  " + x(1020) + "   y\n", []answer{{x(1020), ErrTooLong}}},

		{"telnet: options", "\xff\xfd\x067\xff\xfb\n2\xff\xfc\xff\xff\xfe\xf0\r\n", []answer{{"72", nil}}},
		{"telnet: interrupt", "ab\xff\xf4\xff\xfd\x06c\n", []answer{{"abc", nil}}},
		{"telnet: 0xff", "a\xff\xffb\n\xff\xff\n", []answer{{"a\xffb", nil}, {"\xff", nil}}},
		{"telnet: from program to program", "7\xff\xfa\x1f\x00\n\xff\xff\xf0\xff\x00\xff\xf02\n", []answer{{"72", nil}}},
		{"telnet: the end of nothing", "7\xff\xf02\n", []answer{{"72", nil}}},
		{"telnet: no command", "7\xff2\xff\n73\xff\xef\n", []answer{{"72", nil}, {"73\xef", nil}}},
		{"telnet: cut by the end", "72\xff", []answer{{"72", nil}}},
		{"telnet: inside at the end", "72\n73\xff\xfa\n\xff", []answer{{"72", nil}, {"73", nil}}},
		{"telnet: does not count", x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n", []answer{{x(1024), nil}}},
	}
	for _, tt := range tests {
		for _, size := range []int{1, 7, 64, 65, 1 << 20} { // how the input is split makes no difference
			t.Run(fmt.Sprintf("%s/by %d", tt.name, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, peer := pipe(t, crew(t, 1))
					go typeIn(peer, split(tt.input, size)...)
					got, end := askAll(c)
					if !reflect.DeepEqual(got, tt.want) || end != io.EOF {
						t.Errorf("got %v and %v, want %v and EOF", got, end, tt.want)
					}
					if _, again := c.Ask(); again != io.EOF {
						t.Errorf("then %v, want EOF again", again)
					}
					mustErr(t, c, nil)
				})
			})
		}
	}
}

// script is a connection from which pieces are read, one after the other.
type script struct {
	net.Conn
	pieces []string
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

// FuzzAsk compares Ask with a plain reading of the whole input, however that
// is split. (Go spends most of its time on minimizing, without -fuzzminimizetime 1s.)
func FuzzAsk(f *testing.F) {
	long := bytes.Repeat([]byte("x"), 1024)
	f.Add([]byte("100\n72\r\n\nlast"), []byte{1})
	f.Add(append(long, "\r\r\n1\n"...), []byte{255})
	f.Add(bytes.Repeat(append(long, 'y'), 3), []byte{3, 200, 64})
	f.Add([]byte("\r\n\x00\n\r"), []byte{2, 1})
	f.Add([]byte("\xff\xfd\x06\xff\xfa\n\xff\xff\xff\xf01\xff\xff\xff\n\xff"), []byte{2, 1})
	// The bytes are the runes of the same numbers here.
	telnet := regexp.MustCompile(`(?s)ÿ(?:ú(?:[^ÿ]|ÿ[^ð])*(?:ÿð|ÿ?$)|[û-þ](?:.|$)|ÿ|[ð-ú]|)`)
	f.Fuzz(func(t *testing.T, input, sizes []byte) {
		runes := make([]rune, len(input))
		for i, b := range input {
			runes[i] = rune(b)
		}
		var rest string
		for _, r := range telnet.ReplaceAllStringFunc(string(runes), func(s string) string { return strings.TrimPrefix("ÿ", strings.TrimSuffix("ÿ", s[2:])) }) {
			rest += string([]byte{byte(r)})
		}
		var want []answer
		for rest != "" {
			var line string
			line, rest, _ = strings.Cut(rest, "\n")
			line = strings.TrimSuffix(line, "\r")
			if len(line) > 1024 {
				want = append(want, answer{strings.TrimSpace(line[:1024]), ErrTooLong})
			} else {
				want = append(want, answer{strings.TrimSpace(line), nil})
			}
		}
		cuts := []int{1 << 20}
		for i, size := range sizes {
			cuts = append(cuts[:i], int(size))
		}
		synctest.Test(t, func(t *testing.T) { // for the pauses
			got, end := askAll(new(Writers).Conn(&script{pieces: split(string(input), cuts...)}))
			if end != io.EOF || !reflect.DeepEqual(got, want) {
				t.Errorf("of %q in pieces of %v: got %v and %v, want %v and EOF", input, cuts, got, end, want)
			}
		})
	})
}

// An endless line is answered once, while it is still coming; what follows is
// dropped up to the newline.
func TestAskEndless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		come := 0
		go func() {
			for ; come < 512<<10; come += 64 {
				io.WriteString(peer, strings.Repeat("x", 64))
			}
			io.WriteString(peer, "\nok\n")
		}()
		if typed, err := c.Ask(); err != ErrTooLong || typed != strings.Repeat("x", 1024) {
			t.Fatalf("got %v, want the first 1024 bytes, and ErrTooLong", answer{typed, err})
		}
		if synctest.Wait(); come > 1200 {
			t.Errorf("the answer came only after %d bytes", come)
		}
		if typed, err := c.Ask(); typed != "ok" || err != nil {
			t.Errorf("after the long line: %v, want \"ok\"", answer{typed, err})
		}
	})
}

// Whoever sends more than a person is slowed down to one line each 20 ms; who
// has been quiet has earned a burst again, but never more than one.
func TestAskPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		go func() { // as many lines as the reader takes
			for _, err := io.WriteString(peer, "1\n"); err == nil; _, err = io.WriteString(peer, "1\n") {
			}
		}()
		read := func(lines int, want time.Duration) {
			t.Helper()
			start := time.Now()
			for range lines {
				if typed, err := c.Ask(); typed != "1" || err != nil {
					t.Fatalf("got %v", answer{typed, err})
				}
			}
			if took := time.Since(start); took != want {
				t.Errorf("%d lines took %v, want %v", lines, took, want)
			}
		}
		read(100, 0)
		read(1, 20*time.Millisecond)
		read(49, 980*time.Millisecond)
		time.Sleep(time.Second)
		read(50, 0)
		read(10, 200*time.Millisecond)
		time.Sleep(time.Hour)
		read(100, 0)
		read(50, time.Second)
	})
}

// What is dropped is slowed down as well.
func TestAskPaceOfDropped(t *testing.T) {
	tests := []struct {
		name, input string
		want        time.Duration // for a read of 64 bytes each, and a newline, less the burst of 100
	}{
		{"a long line", strings.Repeat("x", 200*64) + "\n", 101 * 20 * time.Millisecond},
		{"telnet", strings.Repeat("\xff\xf1", 200*32), 100 * 20 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pipe(t, crew(t, 1))
				go typeIn(peer, tt.input)
				start := time.Now()
				if _, end := askAll(c); end != io.EOF {
					t.Fatal(end)
				}
				if took := time.Since(start); took != tt.want {
					t.Errorf("it took %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// A peer that takes nothing back is not asked on: its lines wait until it does.
func TestAskFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		go io.WriteString(peer, "1\n2\n")
		start := time.Now()
		for i, want := range []string{"1", "2"} {
			go func() {
				time.Sleep(5 * time.Second)
				io.ReadFull(peer, make([]byte, len("answer")))
			}()
			c.Tell("answer")
			if typed, err := c.Ask(); typed != want || err != nil {
				t.Fatalf("got %v", answer{typed, err})
			}
			if took, want := time.Since(start), time.Duration(i+1)*5*time.Second; took != want {
				t.Errorf("asked after %v, want %v", took, want)
			}
		}
	})
}

// After End there is nothing to ask any more, whatever the peer has sent.
func TestAskAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, begun := range []bool{false, true} {
			c, peer := pipe(t, crew(t, 1))
			if begun {
				go typeIn(peer, "1\n2\n") // and the end
				if typed, err := c.Ask(); typed != "1" || err != nil {
					t.Fatalf("got %v", answer{typed, err})
				}
			} else {
				go func() {
					synctest.Wait() // until Ask waits
					c.End("")
				}()
			}
			for range 2 {
				if begun {
					c.End("")
				}
				start := time.Now()
				if typed, err := c.Ask(); typed != "" || err == nil || err == io.EOF || time.Since(start) != 0 {
					t.Errorf("got %v after %v", answer{typed, err}, time.Since(start))
				}
			}
			mustErr(t, c, nil)
			c.Close()
		}
	})
}

// failing is a connection of which the network has an error to tell.
type failing struct{ net.Conn }

var errNetwork = errors.New("no route to host")

func (failing) Read([]byte) (int, error)  { return 3, errNetwork }
func (failing) Write([]byte) (int, error) { return 3, errNetwork }

// A connection from which one cannot read, or to which one cannot write, has failed, and
// every Ask says why; what came before does not count.
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, words := range []string{"", "hello"} {
			ours, peer := net.Pipe()
			c := crew(t, 1).Conn(failing{ours})
			if words != "" {
				c.Tell("%s", words)
				c.Flush()
				mustErr(t, c, errNetwork)
			}
			for range 2 {
				if typed, err := c.Ask(); typed != "" || err != errNetwork {
					t.Errorf("got %v", answer{typed, err})
				}
				mustErr(t, c, errNetwork)
			}
			c.Close() // waits for no End
			mustReadAll(t, peer, "")
		}
	})
}
