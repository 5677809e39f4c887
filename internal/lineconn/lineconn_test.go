package lineconn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// ---- Helpers ----

// crew starts n writers for as long as the test runs. Connections must be made,
// and so registered for their end, after it.
func crew(t *testing.T, n int) *Writers {
	t.Helper()
	w := NewWriters(n)
	t.Cleanup(w.Close)
	return w
}

// pipe is a connection over net.Pipe and its peer: no buffers, and virtual time.
func pipe(t *testing.T, w *Writers) (*Conn, net.Conn) {
	t.Helper()
	ours, peer := net.Pipe()
	c := w.Conn(ours)
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// tcp is both ends of a connection over 127.0.0.1, with small buffers. The
// peer's deadline only makes a broken test end.
func tcp(t *testing.T) (ours, peer *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours, peer = a.(*net.TCPConn), d.(*net.TCPConn)
	ours.SetWriteBuffer(32 << 10)
	peer.SetReadBuffer(128 << 10)
	peer.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { ours.Close(); peer.Close() })
	return ours, peer
}

// mustRead reads len(want) bytes from peer, which must be want.
func mustRead(t *testing.T, peer io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(peer, got)
	if err != nil || string(got) != want {
		t.Fatalf("the peer got %s, %v; want %s", short(string(got[:n])), err, short(want))
	}
}

// mustReadAll reads from peer to its end; all of it must be want.
func mustReadAll(t *testing.T, peer io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(peer)
	if err != nil || string(got) != want {
		t.Fatalf("the peer got %s, %v; want %s and the end", short(string(got)), err, short(want))
	}
}

// short is s for a message to a person.
func short(s string) string {
	if len(s) > 100 {
		return fmt.Sprintf("%.50q…(%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}

// mustErr checks why c is closed.
func mustErr(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.Err(); !errors.Is(err, want) {
		t.Fatalf("Err is %v, want %v", err, want)
	}
}

// goroutines counts what connections have running in this bubble, without
// the crew and what the test started itself.
func goroutines() int {
	buf := make([]byte, 4<<20)
	count := 0
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "synctest bubble") && strings.Contains(stack, "created by proofofstake/internal/lineconn.(*") {
			count++
		}
	}
	return count
}

// answer is what ReadLine returned.
type answer struct {
	line string
	err  error
}

func (a answer) String() string { return fmt.Sprintf("%s, %v", short(a.line), a.err) }

// readAll returns what ReadLine returns up to the first error that is not
// ErrTooLong, which is the second result.
func readAll(c *Conn) (answers []answer, end error) {
	for {
		line, err := c.ReadLine()
		if err != nil && err != ErrTooLong {
			return answers, err
		}
		answers = append(answers, answer{line, err})
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

// writeAll writes pieces to peer, a write each, and ends it.
func writeAll(peer net.Conn, pieces []string) {
	for _, p := range pieces {
		io.WriteString(peer, p)
	}
	peer.Close()
}

// ---- ReadLine ----

func TestReadLine(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	tooLong := answer{x(MaxLine), ErrTooLong}
	tests := []struct {
		name, input string
		want        []answer
	}{
		{"nothing", "", nil},
		{"one line", "hello\n", []answer{{"hello", nil}}},
		{"an empty line", "\n", []answer{{"", nil}}},
		{"several lines at once", "100\n72\n\n  73 \n", []answer{{"100", nil}, {"72", nil}, {"", nil}, {"  73 ", nil}}},
		{"telnet's CR", "a\r\n\r\nb\r\n", []answer{{"a", nil}, {"", nil}, {"b", nil}}},
		{"only one CR, and only before the newline", "\ra\r\r\n", []answer{{"\ra\r", nil}}},
		{"a last line without a newline", "a\nb", []answer{{"a", nil}, {"b", nil}}},
		{"a last line with a CR only", "a\nb\r", []answer{{"a", nil}, {"b", nil}}},
		{"NUL and other bytes", "\x00a\x00\n\xff\xfe\x1b[2J\n", []answer{{"\x00a\x00", nil}, {"\xff\xfe\x1b[2J", nil}}},
		{"as long as the buffer", x(readBuffer) + "\n" + x(readBuffer-1) + "\n" + x(readBuffer), []answer{{x(readBuffer), nil}, {x(readBuffer - 1), nil}, {x(readBuffer), nil}}},
		{"1024 bytes", x(1024) + "\nok\n", []answer{{x(1024), nil}, {"ok", nil}}},
		{"1024 bytes and CRLF", x(1024) + "\r\nok\n", []answer{{x(1024), nil}, {"ok", nil}}},
		{"1024 bytes at the end", x(1024), []answer{{x(1024), nil}}},
		{"1024 bytes and a CR at the end", x(1024) + "\r", []answer{{x(1024), nil}}},
		{"1025 bytes", x(1025) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1025 bytes and CRLF", x(1025) + "\r\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1024 bytes and two CRs", x(1024) + "\r\r\nok\n", []answer{tooLong, {"ok", nil}}},
		{"1025 bytes at the end", x(1025), []answer{tooLong}},
		{"1088 bytes", x(1088) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"a very long line", x(10000) + "\nok\n", []answer{tooLong, {"ok", nil}}},
		{"a very long line to the end", x(10000), []answer{tooLong}},
		{"two long lines", x(3000) + "\n" + x(3000) + "\nok", []answer{tooLong, tooLong, {"ok", nil}}},
	}
	for _, tt := range tests {
		for _, size := range []int{1, 7, 64, 65, 1 << 20} { // how the input is split makes no difference
			t.Run(fmt.Sprintf("%s/by %d", tt.name, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, peer := pipe(t, crew(t, 1))
					go writeAll(peer, split(tt.input, size))
					got, end := readAll(c)
					if !reflect.DeepEqual(got, tt.want) {
						t.Errorf("got %v, want %v", got, tt.want)
					}
					if end != io.EOF {
						t.Errorf("it ended with %v, want EOF", end)
					}
				})
			})
		}
	}
}

// An endless line is answered once, while it is still coming; what follows is
// dropped up to the newline, and costs no memory.
func TestReadLineEndless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		var pieces atomic.Int64
		const total = 8 << 10 // of 64 bytes: 512 KiB
		go func() {
			piece := bytes.Repeat([]byte("x"), 64)
			for range total {
				pieces.Add(1)
				peer.Write(piece)
			}
			io.WriteString(peer, "\nok\n")
		}()

		line, err := c.ReadLine()
		if err != ErrTooLong || line != strings.Repeat("x", MaxLine) {
			t.Fatalf("got %v, want the first %d bytes, and ErrTooLong", answer{line, err}, MaxLine)
		}
		if n := pieces.Load(); n > MaxLine/64+3 {
			t.Errorf("the answer came only after %d bytes", n*64)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		line, err = c.ReadLine()
		runtime.ReadMemStats(&after)
		if line != "ok" || err != nil {
			t.Errorf("after the long line: %v, want \"ok\"", answer{line, err})
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > total*64/4 {
			t.Errorf("to drop %d bytes took %d bytes of memory", total*64, used)
		}
	})
}

// Whoever sends more than a person is slowed down to one read each pause; who
// has been quiet has earned a burst again, but never more than one.
func TestReadLinePace(t *testing.T) {
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
				if line, err := c.ReadLine(); line != "1" || err != nil {
					t.Fatalf("got %v", answer{line, err})
				}
			}
			if took := time.Since(start); took != want {
				t.Errorf("%d lines took %v, want %v", lines, took, want)
			}
		}
		read(100, 0)
		read(1, 20*time.Millisecond)
		read(49, 49*20*time.Millisecond)
		time.Sleep(time.Second)
		read(50, 0)
		read(10, 10*20*time.Millisecond)
		time.Sleep(time.Hour)
		read(100, 0)
		read(50, time.Second)
	})
}

// What is dropped of a long line is slowed down as well.
func TestReadLinePaceOfDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		go writeAll(peer, []string{strings.Repeat("x", 200*readBuffer) + "\n"})
		start := time.Now()
		if _, err := c.ReadLine(); err != ErrTooLong {
			t.Fatal(err)
		}
		if _, err := c.ReadLine(); err != io.EOF {
			t.Fatal(err)
		}
		// 200 full buffers and the newline: 101 pieces beyond the burst.
		if took, want := time.Since(start), 101*pause; took != want {
			t.Errorf("it took %v, want %v", took, want)
		}
	})
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

// FuzzReadLine compares ReadLine with a plain reading of the whole input,
// however that is split. (Go spends most of its time on minimizing, without
// -fuzzminimizetime 20x.)
func FuzzReadLine(f *testing.F) {
	long := bytes.Repeat([]byte("x"), MaxLine)
	f.Add([]byte("100\n72\r\n\nlast"), []byte{1})
	f.Add([]byte{}, []byte{})
	f.Add(append(long, "\r\n1\n"...), []byte{64})
	f.Add(append(long, "\r\r\n1\n"...), []byte{255})
	f.Add(bytes.Repeat(append(long, 'y'), 3), []byte{3, 200, 64})
	f.Add([]byte("\r\n\x00\n\r"), []byte{2, 1})
	f.Fuzz(func(t *testing.T, input, sizes []byte) {
		var want []answer
		for rest := string(input); rest != ""; {
			var line string
			line, rest, _ = strings.Cut(rest, "\n")
			line = strings.TrimSuffix(line, "\r")
			if len(line) > MaxLine {
				want = append(want, answer{line[:MaxLine], ErrTooLong})
			} else {
				want = append(want, answer{line, nil})
			}
		}
		cuts := []int{1 << 20}
		for i, size := range sizes {
			cuts = append(cuts[:i], int(size))
		}
		synctest.Test(t, func(t *testing.T) { // for the pauses
			got, end := readAll(new(Writers).Conn(&script{pieces: split(string(input), cuts...)}))
			if end != io.EOF || !reflect.DeepEqual(got, want) {
				t.Errorf("of %q in pieces of %v: got %v and %v, want %v and EOF", input, cuts, got, end, want)
			}
		})
	})
}

// ---- Send ----

// Messages arrive whole and in order, whatever parts they have; a message
// without a byte holds up nothing.
func TestSendOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		parts := func(parts ...string) *Message {
			m := new(Message)
			for _, p := range parts {
				m.Parts = append(m.Parts, []byte(p))
			}
			return m
		}
		for _, m := range []*Message{
			Text("one"), parts("[", "1,2,3", "]"), parts(), Text(""), parts("", "", "two", "", "three", ""), parts("", ""), Text("end"),
		} {
			c.Send(m)
		}
		mustRead(t, peer, "one[1,2,3]twothreeend")
		c.Send(Text(""))
		c.Flush()
		c.Send(Text("more"))
		mustRead(t, peer, "more")
		c.Finish()
		c.Hangup()
		mustReadAll(t, peer, "")
	})
}

// What is sent while a message is half written comes after it.
func TestSendNotInterleaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 2))
		a := strings.Repeat("a", 3*writeSize)
		c.Send(&Message{Parts: [][]byte{[]byte(a), []byte("A")}})
		mustRead(t, peer, a[:writeSize+1])
		c.Send(Text("bb"))
		synctest.Wait()
		mustRead(t, peer, a[writeSize+1:]+"Abb")
	})
}

// Connections share a message: nobody changes its bytes or its parts, and each
// of them gets all of it, however fast it reads.
func TestSendShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 2)
		text := strings.Repeat("0123456789", writeSize/4)
		m := &Message{Parts: [][]byte{[]byte("<"), []byte(text), nil, []byte(">")}, Replaceable: true}
		var all sync.WaitGroup
		for i := range 5 {
			c, peer := pipe(t, w)
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				got := make([]byte, len(text)+2)
				if _, err := io.ReadFull(peer, got); err != nil || string(got) != "<"+text+">" {
					t.Errorf("connection %d got %s, %v", i, short(string(got)), err)
				}
			})
			c.Send(m)
		}
		all.Wait()
		if want := [][]byte{[]byte("<"), []byte(text), nil, []byte(">")}; !reflect.DeepEqual(m.Parts, want) {
			t.Error("the message was modified")
		}
	})
}

// Send does not wait for a peer that reads nothing. MaxWaiting messages may
// wait for it; with one more it is cut off.
func TestSendMaxWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		start := time.Now()
		m := Text("x")
		for range MaxWaiting {
			c.Send(m)
		}
		synctest.Wait()
		mustErr(t, c, nil)
		c.Send(m)
		mustErr(t, c, ErrNotReading)
		if took := time.Since(start); took != 0 {
			t.Errorf("Send took %v", took)
		}
		c.Send(m) // no harm
		c.Flush() // nothing to wait for
		mustReadAll(t, peer, "")
		c.Close()
		mustErr(t, c, ErrNotReading) // the first reason stays
		synctest.Wait()
		if n := goroutines(); n != 0 {
			t.Errorf("%d goroutines are left", n)
		}
	})
}

// A peer that reads nothing is cut off after Patience; meanwhile the others get
// theirs at once, even from a crew of one.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 1)
		stuck, _ := pipe(t, w)
		other, peer := pipe(t, w)
		m := Text("the same for all\n")
		stuck.Send(m)
		synctest.Wait()
		start := time.Now()
		other.Send(m)
		mustRead(t, peer, "the same for all\n")
		if took := time.Since(start); took != 0 {
			t.Errorf("the other waited %v", took)
		}
		time.Sleep(Patience - time.Nanosecond)
		synctest.Wait()
		mustErr(t, stuck, nil)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		mustErr(t, stuck, ErrNotReading)
		if line, err := stuck.ReadLine(); err == nil {
			t.Errorf("ReadLine of a connection that is cut off returns %q", line)
		}
		mustErr(t, other, nil)
		if n := goroutines(); n != 0 {
			t.Errorf("%d goroutines are left", n)
		}
	})
}

// A slow peer that reads steadily gets a message of any size, even if that takes
// many times Patience; with one byte too few in that time it is cut off.
func TestPatienceWithSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		var text []byte
		for i := 0; len(text) < 3<<20; i++ {
			text = append(strconv.AppendInt(text, int64(i), 10), ' ')
		}
		start := time.Now()
		c.Send(&Message{Parts: [][]byte{text}})
		want := string(text)
		for len(want) > 0 {
			time.Sleep(Patience - time.Millisecond)
			n := min(writeSize, len(want))
			mustRead(t, peer, want[:n])
			want = want[n:]
		}
		c.Flush()
		mustErr(t, c, nil)
		if took := time.Since(start); took < 10*Patience {
			t.Fatalf("the reader was not slow: %v", took)
		}

		c.Send(&Message{Parts: [][]byte{text}})
		mustRead(t, peer, string(text[:writeSize-1]))
		time.Sleep(Patience)
		synctest.Wait()
		mustErr(t, c, ErrNotReading)
	})
}

// A replaceable message gives way to a newer one, unless it is begun. All other
// messages stay, in their order.
func TestReplaceable(t *testing.T) {
	status := func(s string) *Message { return &Message{Parts: [][]byte{[]byte(s)}, Replaceable: true} }
	tests := []struct {
		name  string
		begun *Message // half of it is read before the others are sent
		sent  []*Message
		want  string
	}{
		{"not begun", Text("(begun)"), []*Message{status("old"), status("new")}, "(begun)new"},
		{"begun", status("(begun)"), []*Message{status("old"), status("new")}, "(begun)new"},
		{"others keep their order", status("(begun)"),
			[]*Message{Text("a"), status("1"), Text("b"), status("2"), Text("c"), Text("d"), status("3"), Text("e")}, "(begun)abcd3e"},
		{"another message replaces nothing", Text("(begun)"), []*Message{status("1"), Text("a")}, "(begun)1a"},
		{"in parts", &Message{Parts: [][]byte{nil, []byte("(be"), []byte("gun)")}, Replaceable: true},
			[]*Message{status("1"), status("2")}, "(begun)2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, peer := pipe(t, crew(t, 1))
				c.Send(tt.begun)
				mustRead(t, peer, "(")
				for _, m := range tt.sent {
					c.Send(m)
				}
				c.Finish()
				go c.Hangup()
				mustReadAll(t, peer, tt.want[1:])
			})
		})
	}
}

// What has not reached the crew is not begun, and neither is a status that
// comes after a message that was. (The test itself is the crew.)
func TestReplaceableBeforeCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Writers{ready: make(chan []*Conn, 1)}
		c, peer := pipe(t, w)
		for range 2 {
			c.Send(&Message{Parts: [][]byte{[]byte("old")}, Replaceable: true})
			c.Send(&Message{Parts: [][]byte{[]byte("new")}, Replaceable: true})
			c.Send(Text("."))
			go (<-w.ready)[0].writePatiently()
			mustRead(t, peer, "new.")
			synctest.Wait()
		}
	})
}

// A peer is not cut off for statuses that replace one another.
func TestReplaceableDoNotCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		c.Send(Text("("))
		for i := range 2 * MaxWaiting {
			c.Send(&Message{Parts: [][]byte{fmt.Append(nil, i)}, Replaceable: true})
		}
		mustErr(t, c, nil)
		c.Finish()
		go c.Hangup()
		mustReadAll(t, peer, fmt.Sprint("(", 2*MaxWaiting-1))
	})
}

// A message that finds no place at the crew is written nevertheless.
func TestSendWithoutPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, &Writers{ready: make(chan []*Conn)}) // nobody receives
		c.Send(Text("one "))
		c.Send(Text("two"))
		mustRead(t, peer, "one two")
	})
}

// ---- Flush, Finish, Hangup, Close ----

// Flush returns when the last byte is taken, not before.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		c.Flush() // nothing is sent
		start := time.Now()
		c.Send(Text("one "))
		c.Send(Text("two"))
		flushed := make(chan time.Time, 1)
		go func() { c.Flush(); flushed <- time.Now() }()
		time.Sleep(3 * time.Second)
		mustRead(t, peer, "one tw")
		time.Sleep(4 * time.Second)
		mustRead(t, peer, "o")
		if took := (<-flushed).Sub(start); took != 7*time.Second {
			t.Errorf("Flush returned after %v, want 7s", took)
		}
	})
}

// After Finish nothing is sent any more, what was sent before it arrives, and a
// reader that waits for a line gets an error at once.
func TestFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		ended := make(chan error)
		go func() {
			_, err := c.ReadLine()
			ended <- err
		}()
		synctest.Wait()
		c.Send(Text("before"))
		start := time.Now()
		c.Finish()
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 0 {
			t.Errorf("ReadLine returned %v after %v", err, time.Since(start))
		}
		c.Send(Text("after"))
		mustErr(t, c, nil)
		go c.Hangup()
		mustReadAll(t, peer, "before")
		synctest.Wait()
		mustErr(t, c, net.ErrClosed)
	})
}

// Hangup that waits for Finish goes on with it at once, though nothing is written.
func TestFinishWakesHangup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, peer := pipe(t, crew(t, 1))
		go c.Hangup()
		synctest.Wait()
		mustErr(t, c, nil)
		c.Finish()
		synctest.Wait()
		mustErr(t, c, net.ErrClosed)
		mustReadAll(t, peer, "")
	})
}

// halfPipe is a pipe that can end its own side, which its peer does not notice.
type halfPipe struct {
	net.Conn
	ended chan struct{}
}

func (p halfPipe) CloseWrite() error { close(p.ended); return nil }

// isEnded reports whether the own side is ended.
func (p halfPipe) isEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Hangup waits for Finish and until the peer has all; then it ends its own side,
// waits a second at most for the peer to end its own, and closes.
func TestHangup(t *testing.T) {
	tests := []struct {
		name string
		peer func(peer net.Conn) // what the peer does after the last words
		want time.Duration       // from the last words to the close
	}{
		{"a peer that stays", func(net.Conn) {}, time.Second},
		{"a peer that leaves", func(peer net.Conn) { time.Sleep(300 * time.Millisecond); peer.Close() }, 300 * time.Millisecond},
		{"a peer that writes and leaves", func(peer net.Conn) { writeAll(peer, []string{"more", "and more"}) }, 40 * time.Millisecond},
		{"a peer that writes on and on", func(peer net.Conn) {
			for _, err := peer.Write(make([]byte, 100)); err == nil; _, err = peer.Write(make([]byte, 100)) {
			}
		}, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, peer := net.Pipe()
				half := halfPipe{ours, make(chan struct{})}
				c := crew(t, 1).Conn(half)
				closed := make(chan time.Time, 1)
				go func() { c.Hangup(); closed <- time.Now() }()
				synctest.Wait()
				c.Send(Text("last words"))
				mustRead(t, peer, "last w")
				time.Sleep(time.Second)
				if half.isEnded() {
					t.Fatal("the own side is ended before Finish")
				}
				c.Finish()
				time.Sleep(time.Second)
				if half.isEnded() {
					t.Fatal("the own side is ended before all is written")
				}
				mustRead(t, peer, "ords")
				last := time.Now()
				synctest.Wait()
				if !half.isEnded() {
					t.Error("the own side is not ended")
				}
				tt.peer(peer)
				// It may be in a pause when the second is over.
				if got := (<-closed).Sub(last); got < tt.want || got > tt.want+pause {
					t.Errorf("closed after %v, want %v", got, tt.want)
				}
				mustErr(t, c, net.ErrClosed)
			})
		})
	}
}

// What a peer that has been told goodbye still sends is read at a measured pace.
func TestHangupPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, peer := net.Pipe()
		c := crew(t, 1).Conn(halfPipe{ours, make(chan struct{})})
		c.Finish()
		go c.Hangup()
		total := 0
		for n, err := 0, error(nil); err == nil; total += n {
			n, err = peer.Write(make([]byte, 1<<10))
		}
		if most := int(linger/pause+1) * 4 << 10; total == 0 || total > most {
			t.Errorf("%d bytes were read, want some, and %d at most", total, most)
		}
	})
}

// Close ends everything at once, whoever waits for whatever: it leaves no
// goroutine behind.
func TestClose(t *testing.T) {
	tests := []struct {
		name string
		wait func(c *Conn)
	}{
		{"nobody waits", func(*Conn) {}},
		{"in ReadLine", func(c *Conn) { c.ReadLine() }},
		{"in Flush", func(c *Conn) { c.Flush() }},
		{"in Hangup, before Finish", func(c *Conn) { c.Hangup() }},
		{"in Hangup, after Finish", func(c *Conn) { c.Finish(); c.Hangup() }},
	}
	for _, tt := range tests {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/busy %v", tt.name, busy), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, peer := pipe(t, crew(t, 1))
					if busy {
						for range 10 {
							c.Send(Text("nobody reads this"))
						}
					}
					var waiting sync.WaitGroup
					waiting.Go(func() { tt.wait(c) })
					synctest.Wait()
					start := time.Now()
					c.Close()
					c.Close() // no harm
					waiting.Wait()
					synctest.Wait()
					if n := goroutines(); n != 0 {
						t.Errorf("%d goroutines are left", n)
					}
					if took := time.Since(start); took != 0 {
						t.Errorf("Close took %v", took)
					}
					mustErr(t, c, net.ErrClosed)
					c.Send(Text("too late"))
					mustReadAll(t, peer, "")
				})
			})
		}
	}
}

// A connection that has nothing to say has no goroutine but its reader.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 2)
		for range 50 {
			c, peer := pipe(t, w)
			go c.ReadLine()
			c.Send(Text("hello"))
			mustRead(t, peer, "hello")
		}
		synctest.Wait()
		if n := goroutines(); n != 0 {
			t.Errorf("50 idle connections have %d goroutines", n)
		}
		c, _ := pipe(t, w)
		c.Send(Text("hello"))
		synctest.Wait()
		if n := goroutines(); n != 1 {
			t.Errorf("a write that is not taken has %d goroutines, want 1", n)
		}
	})
}

// ---- Sockets ----

// spy is a TCP connection that tells how it was written to.
type spy struct {
	*net.TCPConn
	writes   atomic.Int64 // calls of Write
	deadline atomic.Value // the last write deadline
}

func (s *spy) Write(p []byte) (int, error) {
	s.writes.Add(1)
	return s.TCPConn.Write(p)
}

func (s *spy) SetWriteDeadline(t time.Time) error {
	s.deadline.Store(t)
	return s.TCPConn.SetWriteDeadline(t)
}

// What the kernel takes at once is written by the crew itself, without a goroutine
// and a deadline. Only what it does not take is written patiently, and after
// that the deadline is gone: it would end the crew's later writes.
func TestSocketWrites(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "plan9" {
		t.Skip("each write is a patient one here")
	}
	w := crew(t, 1)
	ours, peer := tcp(t)
	s := &spy{TCPConn: ours}
	c := w.Conn(s)
	for range 10 {
		c.Send(Text("small"))
	}
	c.Flush()
	if n := s.writes.Load(); n != 0 {
		t.Errorf("%d writes were patient ones", n)
	}
	mustRead(t, peer, strings.Repeat("small", 10))

	big := strings.Repeat("0123456789abcdef", 1<<20/16)
	c.Send(Text(big))
	c.Send(Text("the end"))
	mustRead(t, peer, big+"the end")
	c.Flush()
	patient := s.writes.Load()
	if patient == 0 {
		t.Error("no write was a patient one")
	}
	if d, _ := s.deadline.Load().(time.Time); !d.IsZero() {
		t.Errorf("the write deadline is still set: %v", d)
	}
	c.Send(Text("small again"))
	c.Flush()
	if n := s.writes.Load(); n != patient {
		t.Errorf("%d writes were patient ones after all had been taken", n-patient)
	}
	mustRead(t, peer, "small again")
}

// Messages of several megabytes arrive whole at a peer that reads little by little.
func TestSocketLargeMessages(t *testing.T) {
	w := crew(t, 1)
	ours, peer := tcp(t)
	c := w.Conn(ours)
	var parts [][]byte
	for i := range 300 {
		parts = append(parts, bytes.Repeat([]byte{byte('a' + i%26)}, i*40))
	}
	m := &Message{Parts: parts}
	whole := string(bytes.Join(parts, nil))
	for range 3 {
		c.Send(m)
		c.Send(Text("|"))
	}
	c.Finish()
	go c.Hangup()
	var got bytes.Buffer
	if _, err := io.CopyBuffer(&got, struct{ io.Reader }{peer}, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if got.String() != strings.Repeat(whole+"|", 3) {
		t.Errorf("%d bytes arrived, or others than the %d that were sent", got.Len(), 3*len(whole)+3)
	}
}

// Who has ended its own side still gets what is sent to it.
func TestSocketHalfClose(t *testing.T) {
	w := crew(t, 1)
	ours, peer := tcp(t)
	c := w.Conn(ours)
	io.WriteString(peer, "100\n72")
	peer.CloseWrite()
	got, end := readAll(c)
	if want := []answer{{"100", nil}, {"72", nil}}; !reflect.DeepEqual(got, want) || end != io.EOF {
		t.Fatalf("got %v and %v, want %v and EOF", got, end, want)
	}
	c.Send(Text("winning validator"))
	c.Flush()
	mustRead(t, peer, "winning validator")
	c.Send(Text("goodbye"))
	c.Finish()
	c.Hangup()
	mustReadAll(t, peer, "goodbye")
}

// Input that nobody read does not destroy the last words: the peer gets them
// and the end, no reset.
func TestSocketLastWords(t *testing.T) {
	w := crew(t, 1)
	ours, peer := tcp(t)
	c := w.Conn(ours)
	io.WriteString(peer, "junk\n"+strings.Repeat("more junk\n", 1000))
	if line, err := c.ReadLine(); line != "junk" || err != nil {
		t.Fatal(line, err)
	}
	c.Send(Text("slashed"))
	c.Finish()
	done := make(chan struct{})
	go func() { c.Hangup(); close(done) }()
	mustReadAll(t, peer, "slashed")
	if _, err := io.WriteString(peer, "too late"); err != nil {
		t.Errorf("the connection was cut: %v", err)
	}
	peer.Close()
	<-done
	mustErr(t, c, net.ErrClosed)
}

// A peer that does not read holds up nobody, and is cut off when too much waits.
func TestSocketNotReading(t *testing.T) {
	w := crew(t, 1)
	ours, stuckPeer := tcp(t)
	stuck := w.Conn(ours)
	ours, peer := tcp(t)
	other := w.Conn(ours)
	big := Text(strings.Repeat("x", 1<<20)) // more than the buffers hold
	for i := range MaxWaiting {
		stuck.Send(big)
		if i%100 == 0 {
			other.Send(Text("hello\n"))
			mustRead(t, peer, "hello\n")
			mustErr(t, stuck, nil) // the other had not to wait for its end
		}
	}
	mustErr(t, stuck, nil)
	stuck.Send(big)
	mustErr(t, stuck, ErrNotReading)
	stuck.Flush()
	if n, _ := io.Copy(io.Discard, stuckPeer); n >= 1<<20 {
		t.Errorf("the peer that was cut off got %d bytes", n)
	}
	other.Send(Text("still here"))
	mustRead(t, peer, "still here")
}

// A reset ends the connection, and nothing else.
func TestSocketReset(t *testing.T) {
	w := crew(t, 1)
	ours, peer := tcp(t)
	c := w.Conn(ours)
	peer.SetLinger(0)
	peer.Close()
	if line, err := c.ReadLine(); err == nil || err == io.EOF {
		t.Errorf("ReadLine returns %q, %v after a reset", line, err)
	}
	c.Send(Text("anybody there?"))
	c.Flush()
	if c.Err() == nil {
		t.Error("the connection is open after a write to a peer that is gone")
	}
	c.Send(Text("no"))
	c.Finish()
	c.Hangup()

	ours, peer = tcp(t)
	c = w.Conn(ours)
	c.Send(Text("the crew goes on"))
	mustRead(t, peer, "the crew goes on")
}

// numbered is message number n of a sender: a line that starts with who sends it.
// Some are large.
func numbered(sender byte, n int) *Message {
	size := n * 7 % 30
	if n%10 == 0 {
		size = 10000
	}
	filler := bytes.Repeat([]byte{'a' + sender}, size)
	return &Message{Parts: [][]byte{{'0' + sender}, fmt.Appendf(nil, " %d ", n), nil, filler, []byte("\n")}}
}

// readNumbered reads what is numbered from peer to its end and returns how many came from each
// sender. It fails if one is broken or not the next of its sender; the last
// line may lack its end if cut is true. It calls each after each message.
func readNumbered(peer io.Reader, cut bool, each func()) (came map[byte]int, err error) {
	came = map[byte]int{}
	in := bufio.NewReader(peer)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil && (cut || err == io.EOF && len(line) == 0) {
			return came, nil
		}
		if err != nil {
			return came, fmt.Errorf("the end is %s, %w", short(string(line)), err)
		}
		sender := line[0] - '0'
		if want := bytes.Join(numbered(sender, came[sender]).Parts, nil); !bytes.Equal(line, want) {
			return came, fmt.Errorf("got %s, want %s", short(string(line)), short(string(want)))
		}
		came[sender]++
		each()
	}
}

// However many send to however many connections at once: each peer gets whole
// messages, those of a sender in its order, and none is missing. If a
// connection is finished or closed meanwhile, none is missing before the last.
func TestSocketManySenders(t *testing.T) {
	const conns, senders, messages = 18, 6, 100
	w := crew(t, 2)
	var all []*Conn
	var reading, sending, serving sync.WaitGroup
	for i := range conns {
		ours, peer := tcp(t)
		c := w.Conn(ours)
		all = append(all, c)
		serving.Go(func() {
			c.ReadLine() // until the end
			c.Hangup()
		})
		reading.Go(func() {
			defer peer.Close()
			n := 0
			came, err := readNumbered(peer, i%3 == 2, func() {
				n++
				switch {
				case n == 20*i && i%3 == 1:
					c.Finish()
				case n == 20*i && i%3 == 2:
					c.Close()
				}
			})
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
			for sender := range byte(senders) {
				if n := came[sender]; n != messages && i%3 == 0 {
					t.Errorf("connection %d: %d messages of sender %d arrived, want %d", i, n, sender, messages)
				}
			}
		})
	}
	for sender := range byte(senders) {
		sending.Go(func() {
			for n := range messages {
				m := numbered(sender, n) // shared by all connections
				for _, c := range all {
					c.Send(m)
				}
			}
		})
	}
	sending.Wait()
	for i, c := range all {
		if i%3 == 0 {
			mustErr(t, c, nil)
		}
		c.Finish()
	}
	reading.Wait()
	serving.Wait()
}
