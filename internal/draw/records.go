package draw

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"proofofstake/internal/linefile"
)

// Record is a line of a draws file: how a block was drawn.
type Record struct {
	Index    int         // of the block
	Block    string      // its hash
	Lines    []string    // of the draw
	Ticket   json.Number // that decided; may pass 64 bits
	Total    json.Number
	NextSeal string // of the next draw
}

// NewRecord is the line, without a newline, of a block that was drawn by lines, before the draw next.
func NewRecord(index int, block string, o Outcome, next *Draw) []byte {
	return linefile.Encode(Record{
		Index:    index,
		Block:    block,
		Lines:    strings.Split(strings.TrimSuffix(o.Lines, "\n"), "\n"),
		Ticket:   json.Number(o.Ticket.String()),
		Total:    json.Number(o.Total.String()),
		NextSeal: next.Seal(),
	})
}

// maxRecord is the longest line of a draws file in bytes: a million proposals have less than 110 MB.
const maxRecord = 128 << 20

// Records reads a draws file and draws every draw again: for r.Scan() { … }, then r.Err(), which names the
// line. Memory does not grow with the file, only with its longest line.
type Records struct {
	Record  // the one last read
	Draw    *Draw
	Outcome Outcome
	lines   *linefile.Scanner
	more    bool // there was one to be read
	err     error

	// What Match has seen.
	started bool
	matched int      // records of blocks that are in the chain
	anew    []string // the lines of draws whose seal is not the one told with the block before, as after a restart
	seal    string   // told for the draw of block sealed
	sealed  int
}

// NewRecords reads a draws file from r.
func NewRecords(r io.Reader) *Records { return &Records{lines: linefile.NewScanner(r, maxRecord)} }

// Scan reads the next record. It returns false at the end and at the first record whose lines do not
// give the ticket that it says.
func (r *Records) Scan() bool {
	if r.more = r.err == nil && r.lines.Scan(); !r.more {
		return false
	}
	if err := r.read(r.lines.Bytes()); err != nil {
		r.fail(r.lines.Number(), err)
	}
	return r.more
}

// read reads a record, all of it in the place of the last one since Decode takes no line that lacks a field, and draws again.
func (r *Records) read(line []byte) (err error) {
	if err = linefile.Decode(line, &r.Record); err != nil {
		return err
	}
	if r.Draw, err = Parse(r.Lines); err != nil {
		return err
	}
	r.Outcome = r.Draw.Outcome()
	switch o := r.Outcome; {
	case o.Winner < 0:
		return errors.New("no entry could win")
	case o.Ticket.String() != string(r.Ticket) || o.Total.String() != string(r.Total):
		return fmt.Errorf("its lines give %v, not ticket %.40s of %.40s", o, r.Ticket, r.Total)
	case r.Index < 1:
		return fmt.Errorf("block %d is not drawn", r.Index)
	case len(r.NextSeal) != 64 || strings.Trim(r.NextSeal, "0123456789abcdef") != "":
		return errors.New("the next seal is no SHA-256")
	}
	if r.Index == r.sealed && r.Draw.Seal() != r.seal {
		r.anew = append(r.anew, strconv.Itoa(r.lines.Number()))
	}
	return nil
}

// fail ends the reading with an error for a line, unless there was one before.
func (r *Records) fail(line int, err error) {
	r.more, r.err = false, cmp.Or(r.err, fmt.Errorf("line %d: %w", line, err))
}

// Err is the first fault; nil: there was none.
func (r *Records) Err() error { return cmp.Or(r.err, r.lines.Err()) }

// errNotInChain is the fault of a record whose block is not in the chain. It is none if the record is the last
// of the file, or the next one is for the same index: then a crash kept it from being announced.
var errNotInChain = errors.New("its block is not in the chain, or not in that order")

// CheckBlock passes over the records for index, where the chain has a block with this hash, won by an entry with this name
// and note, and checks that the last of them is its record. There may be none. The caller calls Scan once, then CheckBlock
// for one block of the chain after the other, then CheckEnd.
func (r *Records) CheckBlock(index int, block, name, note string) {
	r.start()
	passed := 0 // the line of the record for index before, whose block is not in the chain
	for r.more && r.Index == index {
		line, winner, own := r.lines.Number(), r.Draw.Entries[r.Outcome.Winner], r.Block == block
		// A record that does not count is from before a restart, where nobody had the same name.
		if own != (winner.Name == name) || own && winner.Note != note {
			r.fail(line, fmt.Errorf("block %d of the chain has another hash, winner or BPM", index))
			return
		}
		if own {
			r.matched++
			r.seal, r.sealed = r.NextSeal, index+1
			if r.Scan() && r.Index == index {
				r.fail(line+1, fmt.Errorf("block %d has a record already", index))
			}
			return
		}
		passed = line
		r.Scan()
	}
	switch line := r.lines.Number(); {
	case r.Block == block && r.Index != index:
		r.fail(line, fmt.Errorf("its block is block %d of the chain", index))
	case r.more && r.Index < index:
		r.fail(line, fmt.Errorf("it comes behind that of block %d", index-1))
	case r.more && passed > 0:
		r.fail(passed, errNotInChain)
	}
}

// CheckEnd checks what comes behind the record of the head, which is the last block of the chain: no more than draws
// of the next block that were not announced.
func (r *Records) CheckEnd(head int) error {
	r.start()
	for r.more && r.Index == head+1 {
		r.Scan()
	}
	if r.more {
		r.fail(r.lines.Number(), errNotInChain)
	}
	return r.Err()
}

// Summary says how many draws of the blocks up to the head were matched, how many were not, and where a seal was made anew.
func (r *Records) Summary(head int) string {
	s := fmt.Sprintf("%d draws", r.matched)
	if without := head - r.matched; without > 0 {
		s += fmt.Sprintf("; %d blocks have no record of their draw", without)
	}
	if n := len(r.anew); n > 0 {
		s += fmt.Sprintf("; the seal was made anew %d times, as after a restart (lines %s)", n, strings.Join(r.anew, ", "))
	}
	return s
}

func (r *Records) start() {
	if !r.started {
		r.started = true
		r.Scan()
	}
}
