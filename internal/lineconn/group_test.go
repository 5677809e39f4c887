package lineconn

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// member is a peer in a group: what it hears can be read any time.
type member struct {
	*Conn
	heard []byte
}

// expect checks what m heard since the last call.
func (m *member) expect(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	if string(m.heard) != want {
		t.Errorf("heard %q, want %q", m.heard, want)
	}
	m.heard = nil
}

// inGroup runs test with a group and a way to make members, at given prompts.
func inGroup(t *testing.T, every time.Duration, test func(t *testing.T, g *Group, add func(prompt string) *member)) {
	synctest.Test(t, func(t *testing.T) {
		w := crew(t, 1)
		g := NewGroup(every)
		test(t, g, func(prompt string) *member {
			client, server := net.Pipe()
			m := &member{Conn: w.Conn(server)}
			t.Cleanup(m.CutOff)
			m.SetPrompt(prompt)
			g.Add(m.Conn)
			go func() {
				buf := make([]byte, 100)
				for {
					n, err := client.Read(buf)
					if m.heard = append(m.heard, buf[:n]...); err != nil {
						return
					}
				}
			}()
			return m
		})
	})
}

// Everybody hears an announcement, followed by the prompt of each, but the one left out and those that have left.
func TestAnnounce(t *testing.T) {
	inGroup(t, time.Hour, func(t *testing.T, g *Group, add func(string) *member) {
		a, b, c, gone := add("A?"), add("B?"), add(""), add("A?")
		if !g.Leave(gone.Conn) || g.Leave(gone.Conn) {
			t.Error("a member can leave once")
		}
		g.Announce(NewNotice([]byte("hear "), []byte("this ")), b.Conn)
		a.expect(t, "hear this A?")
		b.expect(t, "")
		c.expect(t, "hear this ")
		gone.expect(t, "")
		a.SetPrompt("C?")
		again := NewNotice([]byte("again "))
		g.Announce(again, nil)
		a.expect(t, "again C?")
		b.expect(t, "again B?")
		a.Tell("%d%% of %s ", 5, "it")
		a.expect(t, "5% of it C?")
		gone.Show(again)
		gone.expect(t, "again A?")
	})
}

// All are told before the first is written to. (The test itself is the crew.)
func TestAnnounceQueuesFirst(t *testing.T) {
	w := &Writers{ready: make(chan []*Conn, 3)}
	g := NewGroup(time.Hour)
	for range 100 {
		g.Add(w.Conn(nil))
	}
	g.Announce(NewNotice([]byte("all")), nil)
	if first, second := <-w.ready, <-w.ready; len(first) != 64 || len(second) != 36 || len(w.ready) != 0 {
		t.Errorf("the crew was handed %d and %d and more, want 64 and 36", len(first), len(second))
	}
}

// Each member's broadcasts are due by its own clock, and Due rings for the next one.
func TestBroadcastIsDue(t *testing.T) {
	inGroup(t, 10*time.Second, func(t *testing.T, g *Group, add func(string) *member) {
		ring := func(want time.Duration) {
			t.Helper()
			begun := time.Now()
			<-g.Due.C
			if waited := time.Since(begun); waited != want {
				t.Errorf("due after %v, want %v", waited, want)
			}
			g.Broadcast(NewStatus([]byte("["), []byte("x"), []byte("]")))
		}
		time.Sleep(25 * time.Second) // alone
		a := add("A?")
		time.Sleep(3 * time.Second)
		b := add("B?")
		ring(7 * time.Second)
		a.expect(t, "[x]A?")
		b.expect(t, "")
		ring(3 * time.Second)
		a.expect(t, "")
		b.expect(t, "[x]B?")
		ring(7 * time.Second)
		a.expect(t, "[x]A?")
		g.Leave(b.Conn)
		ring(3 * time.Second) // for nobody
		ring(7 * time.Second)
		a.expect(t, "[x]A?")
		b.expect(t, "")
	})
}

// A notice is made up once for a prompt. Small parts are joined with it, so that they
// are written at once; of large ones there is one copy for all.
func TestNoticeIsShared(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 16<<10+1)
	for _, n := range []*Notice{NewNotice(nil, large), NewNotice(large, []byte("]")), NewStatus([]byte("["), large, []byte("]"))} {
		a, b := n.before("A?"), n.before("B?")
		i := 0
		for len(a.parts[i]) < len(large) {
			i++
		}
		if &a.parts[i][0] != &large[0] || &b.parts[i][0] != &large[0] || n.before("A?") != a {
			t.Error("not shared")
		}
		if text := string(bytes.Join(a.parts, nil)); !strings.HasSuffix(text, "A?") || strings.Contains(text, "B?") {
			t.Errorf("the text is %s", short(text))
		}
	}
	for _, n := range []*Notice{NewNotice(), NewNotice(large[:8<<10], large[:8<<10]), NewStatus([]byte("["), []byte("]"))} {
		if m := n.before("A?"); len(m.parts) != 1 || n.before("A?") != m {
			t.Errorf("%d parts, or not shared", len(m.parts))
		}
	}
}

// End is the end for all members.
func TestGroupEnd(t *testing.T) {
	inGroup(t, time.Hour, func(t *testing.T, g *Group, add func(string) *member) {
		a, b := add("A?"), add("B?")
		g.End("bye")
		for _, m := range []*member{a, b} {
			m.expect(t, "bye")
			if _, err := m.Ask(); err == nil || err == io.EOF {
				t.Errorf("asking goes on: %v", err)
			}
			if g.Leave(m.Conn) {
				t.Error("still a member")
			}
			m.Close()
		}
	})
}
