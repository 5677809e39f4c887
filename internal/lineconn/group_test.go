package lineconn

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// All members except one get an announcement, each followed by its prompt. It is in all queues before the first write.
// Members at the same prompt share the message.
func TestAnnounce(t *testing.T) {
	w := &WriterPool{ready: make(chan []*Conn, 101)} // without writers
	g := NewGroup(time.Hour)
	for i := range 101 {
		g.Add(w.NewConn(nil))
		g.members[i].SetPrompt([]string{"A?", "B?"}[i%2])
	}
	g.Announce(NewNotice([]byte("to "), []byte("all")), g.members[100])
	if n := len(w.ready); n != 2 || len(<-w.ready) != 64 {
		t.Errorf("the writers got %d batches, or not 64 connections first", n)
	}
	for i, c := range g.members[:100] {
		if first := g.members[i%2].queue[0]; c.queue[0] != first || string(first.at(0)) != "to all"+c.prompt {
			t.Errorf("member %d gets %q, or does not share it", i, c.queue[0].at(0))
		}
	}
	if g.members[100].queue != nil {
		t.Error("the exception gets the announcement")
	}
}

// The interval of each member starts when it is added, and Due fires for the next member. EndAll ends all members.
func TestBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		w, g := newPool(t, 1), NewGroup(10*time.Second)
		a, b := newPipeConn(t, w), newPipeConn(t, w)
		b.SetPrompt("B?")
		wantDue := func(seconds int, outputA, outputB string) {
			t.Helper()
			<-g.Due.C
			if got := time.Since(start).Round(time.Second); got != time.Duration(seconds)*time.Second {
				t.Errorf("Due fired after %v, want %d s", got, seconds)
			}
			g.Broadcast(snapshot("[x]"))
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
		g.Broadcast(snapshot("[x]"))
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

// A small notice and its prompt are one part, which one write sends. A large part is never copied. A notice never
// changes, whatever prompts it gets.
func TestNoticeParts(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 16<<10)
	for _, tt := range []struct {
		notice *Notice
		parts  int
	}{
		{notice: NewNotice(), parts: 1},
		{notice: NewNotice(large[:8<<10], large[:8<<10-2]), parts: 1},
		{notice: NewNotice(append(make([][]byte, 0, 9), large)...), parts: 2}, // with room for more parts
		{notice: NewNotice(large, []byte("]")), parts: 3},
	} {
		m, want := tt.notice.withPrompt("A?"), string(bytes.Join(tt.notice.parts, nil))+"A?"
		tt.notice.withPrompt("B?")
		if got := string(bytes.Join(m.parts, nil)); got != want || len(m.parts) != tt.parts {
			t.Errorf("got %d parts with %.100q, want %d with %.100q", len(m.parts), got, tt.parts, want)
		}
		if tt.parts > 1 && &m.parts[0][0] != &large[0] {
			t.Error("a large part was copied")
		}
	}
}

// A snapshot shows the newest texts, and never changes, even where they are in several pieces.
func TestFeed(t *testing.T) {
	for limit, shown := range map[int]int{20: 20, 1: 1, 0: 100} {
		f := NewFeed("\n[", "]\n", limit)
		var texts []string
		var snapshots []*Notice
		for n := range 100 {
			texts = append(texts, fmt.Sprint(n+1000, x(n%50/49*pieceSize), x(12<<10)))
			f.Add([]byte(texts[n]))
			snapshots = append(snapshots, f.Snapshot())
		}
		for n, s := range snapshots {
			want := "\n[" + strings.Join(texts[max(0, n+1-shown):n+1], ",") + "]\n"
			if got := string(bytes.Join(s.parts, nil)); got != want || !s.snapshot {
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
