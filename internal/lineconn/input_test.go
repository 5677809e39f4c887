package lineconn

import (
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// mustAsk checks what ReadLine returns.
func mustAsk(t *testing.T, c *Conn, want string, wantErr error) {
	t.Helper()
	if typed, err := c.ReadLine(); typed != want || err != wantErr {
		t.Fatalf("Ask returned %.100q, %v; want %.100q, %v", typed, err, want, wantErr)
	}
}

// FuzzAsk compares what ReadLine returns with a plain reading of the whole input, however that is split: a line ends at its
// newline, or where the input ends; spaces around it and a CR do not count, nor does telnet. (Go spends most of its time
// on minimizing, without -fuzzminimizetime 1s.)
func FuzzAsk(f *testing.F) {
	const tooLong = " and more"
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
		// telnet: options, an interrupt, the byte 255, from program to program, what is no command, what does not count
		"\xff\xfd\x067\xff\xfb\n2\xff\xfc\xff\xff\xfe\xf0\r\n",
		"ab\xff\xf4\xff\xfd\x06c\na\xff\xffb\n\xff\xff\n",
		"7\xff\xfa\x1f\x00\n\xff\xff\xf0\xff\x00\xff\xf02\n",
		"72\n73\xff\xfa\n\xff",
		"7\xff\xf02\n7\xff2\xff\n73\xff\xef\n72\xff",
		x(1000) + strings.Repeat("\xff\xf1", 100) + x(24) + "\n",
	} {
		for _, sizes := range []string{"\x01", "\x07", "\x3f", "\x40", "\x03\xc8"} {
			f.Add(input, []byte(sizes))
		}
	}
	// The bytes are the runes of the same numbers here.
	telnet := regexp.MustCompile(`(?s)ÿ(?:ú(?:[^ÿ]|ÿ[^ð])*(?:ÿð|ÿ?$)|[û-þ](?:.|$)|(ÿ)|[ð-ú]|)`)
	f.Fuzz(func(t *testing.T, input string, sizes []byte) {
		var runes, rest string
		for _, b := range []byte(input) {
			runes += string(rune(b))
		}
		for _, r := range telnet.ReplaceAllString(runes, "$1") {
			rest += string([]byte{byte(r)})
		}
		var got, want []string
		for line := range strings.Lines(rest) {
			if line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"); len(line) > 1024 {
				want = append(want, strings.TrimSpace(line[:1024])+tooLong)
			} else {
				want = append(want, strings.TrimSpace(line))
			}
		}
		synctest.Test(t, func(t *testing.T) {
			l := pipe(t, crew(t, 1))
			c := l.conn
			go func() {
				sizes = append(sizes, 64)
				for i, rest := 0, input; rest != ""; i++ {
					n := min(len(rest), max(1, int(sizes[i%len(sizes)])))
					io.WriteString(l.peer, rest[:n])
					rest = rest[n:]
				}
				l.peer.Close()
			}()
			typed, err := c.ReadLine()
			for ; err == nil || err == ErrTooLong; typed, err = c.ReadLine() {
				if err != nil {
					typed += tooLong
				}
				got = append(got, typed)
			}
			if !slices.Equal(got, want) || err != io.EOF {
				t.Errorf("of %.100q in pieces of %v: got %.100q and %v, want %.100q and EOF", input, sizes, got, err, want)
			}
			mustAsk(t, c, "", io.EOF) // again
			if c.Err() != nil {
				t.Error("the end of the input is a failure: ", c.Err())
			}
		})
	})
}

// Whoever sends more than a person is slowed down to one line each 20 ms; who has been quiet has earned a burst again,
// but never more than one. An endless line is answered at once, while it is still coming. What follows is dropped, as
// telnet's own bytes are, but slowed down as well: 20 ms for 64 bytes.
func TestAskPace(t *testing.T) {
	x := strings.Repeat("x", 200*64)
	slow := func(times int) string { return strings.Repeat("ask, wait 19999999ns\n wait 1ns | 1\n", times) }
	talk(t, `
		type `+strings.Repeat("1 ", 360)+x+" "+strings.Repeat("\xff\xf1", 100*32)+`ok
		100 times ask | 1
		`+slow(50)+`
		wait 1s
		50 times ask | 1
		`+slow(10)+`
		wait 1h
		100 times ask | 1
		`+slow(50)+`
		wait 1h, ask | `+x[:1024]+`(the line is too long)
		ask, wait 4059999999ns
		wait 1ns | ok`) // (200 + 1 + 101 + 1 - 100) * 20 ms: with two newlines, and less the burst
}

// A peer that takes nothing back is not asked on: its lines wait until it has taken the last byte, for whoever waits.
func TestAskFlushes(t *testing.T) {
	const answer = `
		tell an, tell answer, flush, ask, wait 3s, hear 7 | ananswe
		wait 2s, hear 1 | `
	talk(t, "type 1 2"+answer+"1 | r"+answer+"2 | r")
}

// After End there is nothing to ask any more, whatever the peer has sent, and neither for who waits already.
func TestAskAfterEnd(t *testing.T) {
	const ended = " | (the conversation has ended)"
	talk(t, `
		ask
		end`+ended+`
		ask`+ended+`
		at B, type 1 2, ask | 1
		end, ask, ask`+ended+ended)
}

// A connection from which one cannot read, or to which one cannot write, has failed, and every ReadLine says why; what came
// before does not count. Close waits for no End then.
func TestFailure(t *testing.T) {
	const why = " | no route to host"
	const asked = " | (no route to host)"
	for _, use := range []string{"ask" + asked, "tell hello, flush"} {
		talk(t, "cut-cable, "+use+`
			err, ask, close, hear`+why+asked+" | closed | (the end)")
	}
}
