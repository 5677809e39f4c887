package lineconn

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// member is a peer in a group: what it hears can be read any time.
type member struct {
	*Conn
	heard []byte
}

// taken returns what m heard since the last call.
func (m *member) taken() string {
	synctest.Wait()
	text := string(m.heard)
	m.heard = nil
	return text
}

// inGroup runs test with a group and a way to make members, at given prompts.
func inGroup(t *testing.T, every time.Duration, test func(t *testing.T, g *Group, add func(prompt string) *member)) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriters(1)
		g := NewGroup(every)
		var all []*member
		test(t, g, func(prompt string) *member {
			client, server := net.Pipe()
			m := &member{Conn: w.Conn(server)}
			m.SetPrompt(prompt)
			g.Add(m.Conn)
			all = append(all, m)
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
		for _, m := range all {
			m.Close()
		}
		synctest.Wait()
		w.Close()
	})
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// Everybody hears an announcement, followed by the prompt of each, but the one left out and those removed.
func TestAnnounce(t *testing.T) {
	inGroup(t, time.Hour, func(t *testing.T, g *Group, add func(string) *member) {
		a, b, c, gone := add("A?"), add("B?"), add(""), add("A?")
		if !g.Remove(gone.Conn) || g.Remove(gone.Conn) {
			t.Error("a member can be removed once")
		}
		g.Announce("hear ", b.Conn)
		expect(t, a.taken(), "hear A?")
		expect(t, b.taken(), "")
		expect(t, c.taken(), "hear ")
		expect(t, gone.taken(), "")
		a.SetPrompt("C?")
		g.Announce("again ", nil)
		expect(t, a.taken(), "again C?")
		expect(t, b.taken(), "again B?")
		a.Tell("%d%% of %s ", 5, "it")
		expect(t, a.taken(), "5% of it C?")
	})
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
			g.Broadcast([]byte("["), []byte("x"), []byte("]"))
		}
		time.Sleep(25 * time.Second) // alone
		a := add("A?")
		time.Sleep(3 * time.Second)
		b := add("B?")
		ring(7 * time.Second)
		expect(t, a.taken(), "[x]A?")
		expect(t, b.taken(), "")
		ring(3 * time.Second)
		expect(t, a.taken(), "")
		expect(t, b.taken(), "[x]B?")
		ring(7 * time.Second)
		expect(t, a.taken(), "[x]A?")
		g.Remove(b.Conn)
		ring(3 * time.Second) // for nobody
		ring(7 * time.Second)
		expect(t, a.taken(), "[x]A?")
		expect(t, b.taken(), "")
	})
}

// The parts of a broadcast but the last are the same bytes for all.
func TestBroadcastIsShared(t *testing.T) {
	message := prompted([][]byte{[]byte("["), []byte("x"), []byte("]")}, true)
	a, b := message("A?"), message("B?")
	if &a.Parts[1][0] != &b.Parts[1][0] || message("A?") != a || !a.Replaceable {
		t.Error("not shared")
	}
	if string(a.Parts[2]) != "]A?" || string(b.Parts[2]) != "]B?" {
		t.Errorf("the prompts are %q and %q", a.Parts[2], b.Parts[2])
	}
}

// Dismiss is the end for all members.
func TestDismiss(t *testing.T) {
	inGroup(t, time.Hour, func(t *testing.T, g *Group, add func(string) *member) {
		a, b := add("A?"), add("B?")
		g.Dismiss("bye")
		for _, m := range []*member{a, b} {
			expect(t, m.taken(), "bye")
			if _, err := m.ReadLine(); err == nil || err == io.EOF {
				t.Errorf("reading goes on: %v", err)
			}
			if g.Remove(m.Conn) {
				t.Error("still a member")
			}
			m.Hangup()
		}
	})
}
