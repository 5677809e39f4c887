// Package human writes values as people want to read them.
package human

import (
	"strconv"
	"time"
)

// Duration rounds d to whole seconds, or below one second to milliseconds; a
// negative one is 0.
func Duration(d time.Duration) time.Duration {
	if d < time.Second {
		return max(d, 0).Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// Quote quotes what somebody else typed as %q does, and no more than its first max
// characters: nothing in it can move a cursor or fill a screen.
func Quote(typed string, max int) string {
	n := 0
	for i := range typed {
		if n++; n > max {
			typed = typed[:i]
			break
		}
	}
	return strconv.Quote(typed)
}
