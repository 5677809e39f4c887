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

// The interval of each member starts when it is added, and Due fires for the next member. EndAll ends all members. An
// announcement does not wait for members that read nothing.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, g, f := time.Now(), NewGroup(10*time.Second), NewFeed("[", "]", 0)
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
		g.EndAll("bye")
		g.Broadcast(f) // to nobody
		a.wantOutput(t, everything, "bye")
		b.wantOutput(t, everything, "")
		wantErr(t, a.Conn, errEnded)
		time.Sleep(time.Minute)
		for range 100 { // more than processors
			g.Add(newPipeConn(t).Conn)
		}
		g.Add(b.Conn)
		g.Announce([]byte("news"), nil)
		b.wantOutput(t, everything, "newsB?")
		wantDue(115, "", "[x]B?")
	})
}

// A snapshot shows the newest texts, and never changes, even where they are in several pieces. A feed of all texts
// copies each of them once.
func TestFeed(t *testing.T) {
	for limit, shown := range map[int]int{20: 20, 1: 1, 0: 100} {
		f := NewFeed("\n[", "]\n", limit)
		var texts []string
		var snapshots [][][]byte
		for n := range 100 {
			texts = append(texts, fmt.Sprint(n+1000, x(n%20/19*pieceSize), x(12<<10)))
			f.Add([]byte(texts[n]))
			snapshots = append(snapshots, f.snapshot())
		}
		for n, s := range snapshots {
			want := "\n[" + strings.Join(texts[max(0, n+1-shown):n+1], ",") + "]\n"
			if got := string(bytes.Join(s, nil)); got != want || cap(s) > len(s) { // where peers append their prompts
				t.Errorf("limit %d: snapshot %d is %.100q, want %.100q", limit, n, got, want)
			}
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, text := NewFeed("", "", 0), []byte(x(255))
	for range 64 << 20 / 256 {
		f.Add(text)
	}
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 70<<20 {
		t.Errorf("a feed of 64 MiB has allocated %d bytes", allocated)
	}
}
