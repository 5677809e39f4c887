package lineconn

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
)

// A status shows the newest texts only, also when the window has moved several times, and those before stay as they were.
func TestFeed(t *testing.T) {
	for _, limit := range []int{0, 1, 3} {
		f := NewFeed("\n[", "]\n", limit)
		var want []string // for each status
		var got []*Notice
		for n := range 20 {
			f.Add(fmt.Appendf(nil, "<%d>", n))
			from := 0
			if limit > 0 {
				from = max(0, n+1-limit)
			}
			text := "\n["
			for i := from; i <= n; i++ {
				if i > from {
					text += ","
				}
				text += fmt.Sprintf("<%d>", i)
			}
			want = append(want, text+"]\n")
			got = append(got, f.Status())
			if f.Status() != got[n] {
				t.Error("a status is made twice")
			}
		}
		for n, notice := range got {
			if text := string(bytes.Join(notice.parts, nil)); text != want[n] {
				t.Errorf("limit %d: status %d is %q, want %q", limit, n, text, want[n])
			}
		}
	}
}

// Large statuses share the bytes of their texts: to make one costs no copy of them.
func TestFeedIsShared(t *testing.T) {
	f := NewFeed("[", "]", 50)
	text := bytes.Repeat([]byte("x"), 10<<10)
	var all []*Notice
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 200 {
		f.Add(text)
		all = append(all, f.Status())
	}
	runtime.ReadMemStats(&after)
	// A copy for each would be 200 times 500 KB.
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 20<<20 {
		t.Errorf("%d statuses of 500 KB took %d bytes", len(all), taken)
	}
}
