package lineconn

import "slices"

// Feed is the newest of a growing sequence of texts, as a status that is shown to many. Each text is stored once, and
// bytes once stored never change, so that all statuses, also those on their way to slow peers, share them.
// It has one owner.
type Feed struct {
	open, end string
	limit     int    // texts in a status; 0: all
	texts     []byte // a comma behind each
	starts    []int  // where they start in texts; none if limit is 0
	status    *Notice
}

// NewFeed is a feed of which a status shows the newest limit texts, 0: all, a comma between two, after open and before end.
func NewFeed(open, end string, limit int) *Feed { return &Feed{open: open, end: end, limit: limit} }

// Add appends text, which it copies. Only once in limit texts are the newest copied again, so that the older ones
// can go.
func (f *Feed) Add(text []byte) {
	if f.limit > 0 && len(f.starts) == 2*f.limit {
		cut := f.starts[f.limit]
		f.texts = slices.Clone(f.texts[cut:])
		f.starts = slices.Clone(f.starts[f.limit:])
		for i := range f.starts {
			f.starts[i] -= cut
		}
	}
	if f.limit > 0 {
		f.starts = append(f.starts, len(f.texts))
	}
	f.texts = append(append(f.texts, text...), ',')
	f.status = nil
}

// Status is the newest texts, of which there must be one. It is made once for all calls between two Adds.
func (f *Feed) Status() *Notice {
	if f.status == nil {
		from := 0
		if n := len(f.starts); n > f.limit {
			from = f.starts[n-f.limit]
		}
		f.status = NewStatus([]byte(f.open), f.texts[from:len(f.texts)-1], []byte(f.end))
	}
	return f.status
}
