package human_test

import (
	"strings"
	"testing"
	"time"

	"proofofstake/internal/human"
)

// A duration is shown as people say it: in seconds, or if it is less in milliseconds.
func TestDuration(t *testing.T) {
	const ms, us = time.Millisecond, time.Microsecond
	tests := []struct {
		d    time.Duration
		want string
	}{
		{0, "0s"},
		{-1, "0s"},
		{-time.Hour, "0s"},
		{1, "0s"},
		{499 * us, "0s"},
		{500 * us, "1ms"},
		{800*ms + 400*us, "800ms"},
		{999 * ms, "999ms"},
		{999*ms + 600*us, "1s"},
		{time.Second, "1s"},
		{1499 * ms, "1s"},
		{1500 * ms, "2s"},
		{12*time.Second + 345*ms, "12s"},
		{59*time.Second + 500*ms, "1m0s"},
		{time.Hour + 1234*ms, "1h0m1s"},
	}
	for _, tt := range tests {
		if got := human.Duration(tt.d).String(); got != tt.want {
			t.Errorf("%v is %s, want %s", tt.d, got, tt.want)
		}
	}
}

// What somebody typed is quoted and cut: at characters, never in one, and before
// it is quoted.
func TestQuote(t *testing.T) {
	tests := []struct {
		typed string
		max   int
		want  string
	}{
		{"", 40, `""`},
		{"seventy", 40, `"seventy"`},
		{"seventy", 7, `"seventy"`},
		{"seventy", 6, `"sevent"`},
		{"seventy", 0, `""`},
		{`say "72" \o/`, 40, `"say \"72\" \\o/"`},
		{"\x1b[2J\a\r\n\x00\x7f", 40, `"\x1b[2J\a\r\n\x00\x7f"`}, // clears no screen, rings no bell
		{"\x1b\x1b\x1b", 2, `"\x1b\x1b"`},
		{"a\u202eb\u200bc\ufeff", 40, `"a\u202eb\u200bc\ufeff"`}, // neither turns the line around nor hides
		{"a\u00a0b\u3000c", 40, `"a\u00a0b\u3000c"`},
		{"ｍäß日本🫀", 40, `"ｍäß日本🫀"`},
		{"ｍäß日本🫀", 5, `"ｍäß日本"`},
		{"\xff\xfe日", 2, `"\xff\xfe"`},
		{"日\xff\xfe", 2, `"日\xff"`},
		{strings.Repeat("é", 1024), 40, `"` + strings.Repeat("é", 40) + `"`},
	}
	for _, tt := range tests {
		if got := human.Quote(tt.typed, tt.max); got != tt.want {
			t.Errorf("%q, of which %d: %s, want %s", tt.typed, tt.max, got, tt.want)
		}
	}
}
