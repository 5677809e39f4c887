// Package ledger saves blocks in the chain file and their draws in the draws file, without making anyone wait for a
// disk. Both are files of lines (see package linefile). A line of the first is a block, a line of the second a record.
//
// The record is saved before the block. If either fails, the ledger retries once a second, always with the same block.
// Once another program has changed the chain file, no block is saved until that is undone. The draws file may be moved,
// compressed or deleted at any time. If so, the ledger opens the file of that name again, or creates it.
package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"proofofstake/internal/draw"
	"proofofstake/internal/linefile"
)

const (
	retryInterval = time.Second // between two attempts to save a block
	logInterval   = time.Minute // between two warnings about failed attempts
)

// Entry is a block to save.
type Entry struct {
	Index  int
	Record []byte // the line of its draw, or nil to save none
	Block  []byte // the line of the block
}

// Ledger owns both files. It saves one entry at a time, in a goroutine.
type Ledger struct {
	// Saved receives a value each time an entry is durable.
	Saved chan struct{}

	chain, draws         *linefile.File
	chainName, drawsName string
	log                  *log.Logger
	saving               sync.WaitGroup  // for the goroutine
	ctx                  context.Context // ends the retries of the goroutine
	cancel               context.CancelFunc
}

// Open opens both files. A file with an empty name accepts lines but does not save them. The error names the setting.
func Open(chainName, drawsName string, logger *log.Logger) (*Ledger, error) {
	chain, err := linefile.Open(chainName)
	if err != nil {
		return nil, fmt.Errorf("CHAIN_FILE=%q: %w", chainName, err)
	}
	draws, err := linefile.Open(drawsName)
	if err != nil {
		chain.Close()
		return nil, fmt.Errorf("DRAWS_FILE=%q: %w", drawsName, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Ledger{
		Saved: make(chan struct{}, 1),
		chain: chain, draws: draws, chainName: chainName, drawsName: drawsName, log: logger, ctx: ctx, cancel: cancel,
	}, nil
}

// LastDraw is the last draw in the draws file. If no draw is recorded, its index is 0 and its hash is [draw.None].
type LastDraw struct {
	*draw.Decoded
	IsAnnounced bool // its block is in the chain
	belongs     bool // the block before is in the chain, or no draw is recorded
}

// Load calls next with each line of the chain file. next returns the hash of the block, or an error if the line is not
// the next block. Load returns the last draw. If a partial last line of the chain file is the next block, Load
// completes it. It drops any other partial last line in either file. When ctx is canceled, a file is invalid, or the
// last draw does not belong to the chain, Load returns an error and leaves the files unchanged.
func (l *Ledger) Load(ctx context.Context, next func(line []byte) (hash string, err error)) (*LastDraw, error) {
	last, err := l.lastDraw()
	if err != nil {
		return nil, fmt.Errorf("%s: last line: %w; repair the file, or move it away", l.drawsName, err)
	}
	blocks := 0
	lacksNewline, err := l.readChain(ctx, func(line []byte) error {
		hash, err := next(line)
		if err == nil {
			last.compare(blocks, hash)
			blocks++
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.chainName, err)
	}
	if err = last.check(blocks, l.chainName); err == nil && l.draws.PartialSize() > 0 && !l.draws.HasPrefix(`{"Index":`) {
		err = errors.New("not a draws file; name another one, or move it away")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.drawsName, err)
	}
	if lacksNewline {
		l.log.Printf("%s: adding the missing newline after line %d, which is complete", l.chainName, blocks)
		err = l.chain.CompletePartial()
	}
	if err == nil {
		err = l.dropPartial(l.chain, l.chainName)
	}
	if err == nil {
		err = l.dropPartial(l.draws, l.drawsName)
	}
	return last, err
}

// lastDraw decodes the last complete line of the draws file.
func (l *Ledger) lastDraw() (*LastDraw, error) {
	line, err := l.draws.LastLine(draw.MaxRecord)
	if err != nil || line == nil {
		none := &draw.Decoded{Outcome: draw.Outcome{Hash: draw.None}}
		return &LastDraw{Decoded: none, belongs: true}, err
	}
	decoded, err := draw.Decode(line)
	return &LastDraw{Decoded: decoded}, err
}

// compare compares the draw with the block of the chain that has this index and this hash.
func (d *LastDraw) compare(index int, hash string) {
	switch index {
	case d.Index - 1:
		d.belongs = hash == d.Draw.PrevBlock
	case d.Index:
		d.IsAnnounced = hash == d.Block
	}
}

// check returns an error if the draw does not belong to the chain, which has this number of blocks.
func (d *LastDraw) check(blocks int, chainName string) error {
	const advice = "put back the chain of these draws, or move the draws away"
	switch {
	case d.belongs:
		return nil
	case blocks == 0:
		return fmt.Errorf("there are draws, but no chain in %s; %s", chainName, advice)
	case d.Index > blocks:
		return fmt.Errorf("the last draw is of block %d, but %s ends with block %d; %s", d.Index, chainName, blocks-1, advice)
	}
	return fmt.Errorf("these are draws of another chain than %s; %s", chainName, advice)
}

// readChain calls add with each line of the chain file. It reports whether the last line is a block that only lacks its
// newline.
func (l *Ledger) readChain(ctx context.Context, add func(line []byte) error) (lacksNewline bool, err error) {
	lines := l.chain.Scanner(linefile.MaxLine)
	for lines.Scan() && ctx.Err() == nil {
		if err := add(lines.Bytes()); err != nil {
			return false, fmt.Errorf("line %d: %w", lines.Number(), err)
		}
	}
	partial, number := lines.Partial(), lines.Number()+1
	switch {
	case ctx.Err() != nil:
		return false, errors.New("interrupted while reading the chain")
	case lines.Err() != nil || len(partial) == 0:
		return false, lines.Err()
	case add(partial) == nil:
		return true, nil
	case add(partial[:len(partial)-1]) == nil: // a complete block plus one byte may have been announced
		return false, fmt.Errorf("line %d: its newline is corrupt; repair the file", number)
	case number == 1 && (bytes.IndexByte(partial, '}') >= 0 || !l.chain.HasPrefix(`{"Index":0,`)):
		return false, errors.New("line 1: no newline, and not the start of a genesis block; is this a chain file?")
	}
	return false, nil
}

// dropPartial drops the partial last line of a file, if there is one.
func (l *Ledger) dropPartial(file *linefile.File, name string) error {
	if file.PartialSize() == 0 {
		return nil
	}
	l.log.Printf("%s: dropping a partial last line (%d bytes); it was never announced", name, file.PartialSize())
	return file.DropPartial()
}

// Append saves the line of a block and waits for it. It must not be called after Save.
func (l *Ledger) Append(block []byte) error { return l.chain.Append(block) }

// Save starts to save e and returns immediately. The previous entry must have been saved.
func (l *Ledger) Save(e Entry) {
	l.saving.Go(func() {
		if l.save(e) {
			l.Saved <- struct{}{}
		}
	})
}

// Cancel ends the retries for an entry that is not saved yet. It is safe to call Cancel more than once.
func (l *Ledger) Cancel() { l.cancel() }

// Close ends the retries, waits for the current attempt, and closes the files.
func (l *Ledger) Close() {
	l.cancel()
	l.saving.Wait()
	l.chain.Close()
	l.draws.Close()
}

// save saves the record of e and then the block. It returns false if Cancel was called before an attempt succeeded.
func (l *Ledger) save(e Entry) bool {
	var lastLogged time.Time
	for {
		var err error
		if e.Record != nil {
			err = l.saveRecord(e.Record)
		}
		if err == nil {
			e.Record = nil // so that a retry does not save it again
			err = l.chain.Append(e.Block)
		}
		if err == nil {
			if !lastLogged.IsZero() {
				l.log.Printf("saved block %d after all", e.Index)
			}
			return true
		}
		if now := time.Now(); now.Sub(lastLogged) >= logInterval {
			if e.Record == nil && errors.Is(err, linefile.ErrChanged) {
				err = fmt.Errorf("%w; if you moved it, move it back; otherwise restart the server to verify it", err)
			}
			l.log.Printf("cannot save block %d: %v; retrying every second", e.Index, err)
			lastLogged = now
		}
		select {
		case <-time.After(retryInterval):
		case <-l.ctx.Done():
			return false
		}
	}
}

// saveRecord saves the record of a draw, if need be in a new draws file.
func (l *Ledger) saveRecord(record []byte) error {
	changed := l.draws.Append(record)
	if !errors.Is(changed, linefile.ErrChanged) {
		return changed
	}
	if err := l.draws.Reopen(); err != nil {
		return err
	}
	l.log.Printf("%v; reopened it, new draws go there", changed)
	return l.draws.Append(record)
}
