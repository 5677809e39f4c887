package lineconn

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// All members except one get an announcement, each followed by its prompt, even if the others read nothing. It is in
// all queues before the first write. Members at the same prompt share the message. A small one is one part, which one
// write sends, and a large text is never copied.
func TestAnnounce(t *testing.T) {
	for _, tt := range []struct{ size, parts int }{{size: 1, parts: 1}, {size: 20_000, parts: 2}} {
		synctest.Test(t, func(t *testing.T) {
			g, text, queued := NewGroup(time.Hour), []byte(x(tt.size)), false
			var conns [102]*pipeConn
			for i := range conns {
				conns[i] = newPipeConn(t)
				conns[i].SetPrompt([]string{"A?", "B?"}[i%2])
				g.Add(conns[i].Conn)
			}
			members, full, except := conns[:100], conns[100], conns[101]
			full.Tell("%s", x(256<<10-200)) // has no room for the announcement
			synctest.Wait()
			full.end.onStall = func() { // while Announce runs
				synctest.Wait()
				queued = true
			}
			for _, c := range members {
				c.end.beforeWrite = func() {
					if !queued {
						t.Error("a write comes before the announcement is in all queues")
					}
				}
			}
			g.Announce(text, except.Conn)
			synctest.Wait()
			for i, c := range members {
				m := c.queue[0]
				if m != conns[i%2].queue[0] || len(m.parts) != tt.parts || tt.parts > 1 && &m.parts[0][0] != &text[0] {
					t.Errorf("member %d does not share the message or the text, or gets %d parts", i, len(m.parts))
				}
			}
			for _, c := range slices.Backward(members) {
				c.wantOutput(t, everything, string(text)+c.prompt)
			}
			except.wantOutput(t, everything, "")
		})
	}
}

// The interval of each member starts when it is added, and Due fires for the next member. EndAll ends all members.
func TestBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		g, f := NewGroup(10*time.Second), NewFeed("[", "]", 0)
		f.Add([]byte("x"))
		a, b := newPipeConn(t), newPipeConn(t)
		b.SetPrompt("B?")
		wantDue := func(seconds int, outputA, outputB string) {
			t.Helper()
			<-g.Due.C
			if got := time.Since(start).Round(time.Second); got != time.Duration(seconds)*time.Second {
				t.Errorf("Due fired after %v, want %d s", got, seconds)
			}
			g.Broadcast(f)
			a.wantOutput(t, everything, outputA)
			b.wantOutput(t, everything, outputB)
		}
		time.Sleep(25 * time.Second)
		g.Add(a.Conn)
		time.Sleep(3 * time.Second)
		g.Add(b.Conn)
		wantDue(35, "[x]", "")
		wantDue(38, "", "[x]B?")
		if !g.Remove(b.Conn) || g.Remove(b.Conn) {
			t.Error("Remove must report whether the connection was a member")
		}
		wantDue(45, "[x]", "")
		g.Remove(a.Conn)
		g.Broadcast(f)
		time.Sleep(time.Minute)
		g.Add(b.Conn)
		wantDue(115, "", "[x]B?")
		if g.EndAll("bye"); len(g.members) > 0 {
			t.Error("EndAll has left members")
		}
		a.wantOutput(t, everything, "")
		b.wantOutput(t, everything, "bye")
		wantErr(t, b.Conn, errEnded)
	})
}

// A snapshot shows the newest texts, and never changes, even where they are in several pieces.
func TestFeed(t *testing.T) {
	for limit, shown := range map[int]int{20: 20, 1: 1, 0: 100} {
		f := NewFeed("\n[", "]\n", limit)
		var texts []string
		var snapshots [][][]byte
		for n := range 100 {
			texts = append(texts, fmt.Sprint(n+1000, x(n%50/49*pieceSize), x(12<<10)))
			f.Add([]byte(texts[n]))
			snapshots = append(snapshots, f.snapshot())
		}
		for n, s := range snapshots {
			want := "\n[" + strings.Join(texts[max(0, n+1-shown):n+1], ",") + "]\n"
			if got := string(bytes.Join(s, nil)); got != want {
				t.Errorf("limit %d: snapshot %d is %.100q, want %.100q", limit, n, got, want)
			}
		}
	}
}

// A feed copies each text once, and holds hardly more memory than the texts that it shows.
func TestFeedMemory(t *testing.T) {
	const added = 64 << 20 // bytes
	text, before, after := []byte(x(255)), runtime.MemStats{}, runtime.MemStats{}
	for limit, shown := range map[int]int{0: added, 80_000: 80_000 * 256, 1: 256} {
		f := NewFeed("[", "]", limit)
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range added / 256 {
			f.Add(text)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		allocated, held := int(after.TotalAlloc-before.TotalAlloc), int(after.HeapAlloc)-int(before.HeapAlloc)
		if allocated > added*12/10 || held > shown*12/10+2*pieceSize {
			t.Errorf("limit %d: %d bytes are allocated, and %d held", limit, allocated, held)
		}
		runtime.KeepAlive(f)
	}
}
