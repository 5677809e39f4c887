package console

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progressInterval is the time before the first report of a Progress, in which most work is done, and between two.
const progressInterval = time.Second

// Progress shows how far a long task is, in a line that it overwrites and finally removes. It has one owner.
type Progress struct {
	w           io.Writer
	title       string
	done, total int64
	next        time.Time // when to show it next
	shown       int       // bytes of the line, or 0 if there is none
}

// NewProgress returns the Progress of a task of this size, such as the bytes of a file. It is shown on file if that is
// a terminal.
func NewProgress(file *os.File, title string, total int64) *Progress {
	p := &Progress{w: io.Discard, title: title, total: max(total, 1), next: time.Now().Add(progressInterval)}
	if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.w = file
	}
	return p
}

// Add records that n more of the task is done, and shows that from time to time.
func (p *Progress) Add(n int) {
	p.done += int64(n)
	if now := time.Now(); !now.Before(p.next) {
		p.next = now.Add(progressInterval)
		p.shown, _ = fmt.Fprintf(p.w, "\r%s: %d%%", p.title, min(100, 100*p.done/p.total))
	}
}

// Done removes the line, with spaces: a console of Windows may not know escape sequences. Nothing must be added
// afterwards.
func (p *Progress) Done() {
	if p.shown > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.shown-len("\r"), "")
	}
}
