package lineconn

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// All members except one get an announcement, each followed by its prompt. EndAll ends all members.
func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g := newPool(t, 1), NewGroup(time.Hour)
		a, b, former := newPipeConn(t, w), newPipeConn(t, w), newPipeConn(t, w)
		a.SetPrompt("A?")
		b.SetPrompt("B?")
		for _, c := range []*pipeConn{a, former, b} {
			g.Add(c.Conn)
		}
		if !g.Remove(former.Conn) || g.Remove(former.Conn) {
			t.Error("Remove must report whether the connection was a member")
		}
		g.Announce(NewNotice([]byte("to"), []byte(" A")), b.Conn)
		a.wantOutput(t, everything, "to AA?")
		b.wantOutput(t, everything, "")
		a.SetPrompt("")
		g.Announce(NewNotice([]byte("to all")), nil)
		a.wantOutput(t, everything, "to all")
		b.wantOutput(t, everything, "to allB?")
		g.EndAll("bye")
		for _, c := range []*pipeConn{a, b} {
			c.wantOutput(t, everything, "bye")
			wantErr(t, c.Conn, errEnded)
			if g.Remove(c.Conn) {
				t.Error("still a member after EndAll")
			}
		}
		former.wantOutput(t, everything, "")
	})
}

// An announcement is in all queues before the first write. Members at the same prompt share the message.
func TestAnnounceQueuesFirst(t *testing.T) {
	w := &WriterPool{ready: make(chan []*Conn, 3)} // this test is the writer
	g := NewGroup(time.Hour)
	for range 100 {
		g.Add(w.NewConn(nil))
	}
	g.Announce(NewNotice([]byte("all")), nil)
	if first, second := <-w.ready, <-w.ready; len(first) != 64 || len(second) != 36 || len(w.ready) != 0 {
		t.Errorf("the writers got %d, %d and more; want 64 and 36", len(first), len(second))
	}
	for _, c := range g.members {
		if c.queue[0] != g.members[0].queue[0] {
			t.Fatal("the message is not shared")
		}
	}
}

// The interval of each member starts when it is added, and Due fires for the next member.
func TestBroadcast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		w, g := newPool(t, 1), NewGroup(10*time.Second)
		a, b := newPipeConn(t, w), newPipeConn(t, w)
		wantDue := func(after time.Duration, outputA, outputB string) {
			t.Helper()
			<-g.Due.C
			if got := time.Since(start).Round(time.Second); got != after {
				t.Errorf("Due fired after %v, want %v", got, after)
			}
			g.Broadcast(snapshot("[x]"))
			a.wantOutput(t, everything, outputA)
			b.wantOutput(t, everything, outputB)
		}
		time.Sleep(25 * time.Second)
		g.Add(a.Conn)
		time.Sleep(3 * time.Second)
		b.SetPrompt("B?")
		g.Add(b.Conn)
		wantDue(35*time.Second, "[x]", "")
		wantDue(38*time.Second, "", "[x]B?")
		g.Remove(b.Conn)
		wantDue(45*time.Second, "[x]", "")
		wantDue(55*time.Second, "[x]", "")
		g.Remove(a.Conn)
		g.Broadcast(snapshot("[x]"))
		time.Sleep(time.Minute)
		g.Add(b.Conn)
		wantDue(125*time.Second, "", "[x]B?")
	})
}

// Goroutines may show one notice at different prompts at the same time. A small notice and its prompt are one part,
// which one write sends. A large part is never copied.
func TestNoticeParts(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 16<<10)
	for _, tt := range []struct {
		notice *Notice
		parts  int
	}{
		{notice: NewNotice(), parts: 1},
		{notice: NewNotice([]byte("["), []byte("]")), parts: 1},
		{notice: NewNotice(large[:8<<10], large[:8<<10-2]), parts: 1},
		{notice: NewNotice(append(make([][]byte, 0, 9), large)...), parts: 2}, // with room for more parts
		{notice: NewNotice([]byte("["), large, []byte("]")), parts: 4},
		{notice: snapshot("[]"), parts: 1},
	} {
		prompts, messages := [2]string{"A?", "B?"}, [2]*message{}
		var all sync.WaitGroup
		for i, prompt := range prompts {
			all.Go(func() { messages[i] = tt.notice.withPrompt(prompt) })
		}
		all.Wait()
		for i, m := range messages {
			want := string(bytes.Join(tt.notice.parts, nil)) + prompts[i]
			if got := string(bytes.Join(m.parts, nil)); got != want || len(m.parts) != tt.parts {
				t.Errorf("got %d parts with %.100q, want %d with %.100q", len(m.parts), got, tt.parts, want)
			}
			for _, part := range m.parts {
				if tt.parts > 1 && len(part) == len(large) && &part[0] != &large[0] {
					t.Error("a large part was copied")
				}
			}
		}
	}
}

// A snapshot shows the newest texts, and never changes. It shares the texts with the feed, which frees old texts, but
// seldom copies many.
func TestFeed(t *testing.T) {
	for limit, shown := range map[int]int{20: 20, 1: 1, 3: 3, 0: 100} {
		f := NewFeed("\n[", "]\n", limit)
		var texts []string
		var snapshots []*Notice
		copies, last := 0, new(byte) // last is the last byte of the memory of the texts
		for n := range 100 {
			texts = append(texts, fmt.Sprint(n+1000, strings.Repeat("x", 16<<10)))
			f.Add([]byte(texts[n]))
			if memory := f.texts[:cap(f.texts)]; &memory[len(memory)-1] != last {
				copies, last = copies+1, &memory[len(memory)-1]
			}
			snapshots = append(snapshots, f.Snapshot())
			if part := snapshots[n].parts[1]; &part[0] != &f.texts[0] {
				t.Error("the texts of a snapshot are copied")
			}
		}
		for n, s := range snapshots {
			want := "\n[" + strings.Join(texts[max(0, n+1-shown):n+1], ",") + "]\n"
			if text := string(bytes.Join(s.parts, nil)); text != want || !s.snapshot {
				t.Errorf("limit %d: snapshot %d is %.100q, want %.100q", limit, n, text, want)
			}
		}
		if len(f.sizes) > shown || cap(f.texts) > 3*shown*(17<<10) || copies > 40 && shown >= 20 {
			t.Errorf("limit %d: %d texts take %d bytes, %d copies", limit, len(f.sizes), cap(f.texts), copies)
		}
	}
}
