// Package ledger saves blocks in the chain file and their draws in the draws file, without making anyone wait for a
// disk. Both are files of lines (see package linefile). A line of the first is a block, a line of the second a record.
//
// The record is saved before the block. If either fails, the ledger retries once a second, always with the same block.
// Once another program has changed the chain file, no block is saved until that is undone. The draws file may be moved,
// compressed or deleted at any time. If so, the ledger opens the file of that name again, or creates it.
//
// Both files have one rule for a partial last line: if it is valid, it lacks only its newline, and is completed.
// Otherwise it is removed, but only from a file that is known to be ours.
package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"proofofstake/internal/console"
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
	chain, err := open("CHAIN_FILE", chainName, "keep the chain in memory only")
	if err != nil {
		return nil, err
	}
	draws, err := open("DRAWS_FILE", drawsName, "save no draws")
	if err != nil {
		chain.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Ledger{
		Saved: make(chan struct{}, 1),
		chain: chain, draws: draws, chainName: chainName, drawsName: drawsName, log: logger, ctx: ctx, cancel: cancel,
	}, nil
}

// open opens the file in a setting. Its error says what to do, and what an empty value does.
func open(setting, name, ifEmpty string) (*linefile.File, error) {
	file, err := linefile.Open(name)
	advice := fmt.Sprintf("choose a file on a local disk that you may write, or set %s= to %s", setting, ifEmpty)
	if errors.Is(err, linefile.ErrInUse) {
		advice = "stop that server, or choose another file"
	}
	if err != nil {
		err = fmt.Errorf("%s=%q: %w; %s", setting, name, err, advice)
	}
	return file, err
}

// LastDraw is the last draw in the draws file. If no draw is recorded, its index is 0 and its hash is [draw.None].
type LastDraw struct {
	*draw.Decoded
	IsAnnounced bool // its block is in the chain
}

// Load calls next with each line of the chain file. next returns the hash of the block, or an error if the line is not
// the next block. Load returns the last draw. It completes or removes a partial line of either file. When ctx is
// canceled, a file is invalid, or the last draw does not belong to the chain, Load returns an error and leaves the
// files unchanged.
func (l *Ledger) Load(ctx context.Context, next func(line []byte) (hash string, err error)) (*LastDraw, error) {
	last, drawsEnd, err := lastDraw(l.drawsName, l.draws.Reader())
	if err != nil {
		return nil, err
	}
	blocks, belongs := 0, last.Index == 0 // whether the block before the draw is in the chain
	add := func(line []byte) error {
		hash, err := next(line)
		switch {
		case err != nil:
			return err
		case blocks == last.Index-1:
			belongs = hash == last.Draw.PrevBlock
		case blocks == last.Index:
			last.IsAnnounced = hash == last.Block
		}
		blocks++
		return nil
	}
	chainEnd, err := readChain(ctx, "loading "+l.chainName, l.chain.Reader(), l.chain.Scanner(linefile.MaxLine), add)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: interrupted while reading the chain", l.chainName)
	case err != nil:
		return nil, fmt.Errorf("%s: %w; repair the file, or move it and the draws away to start a new chain",
			l.chainName, err)
	case belongs:
	case blocks == 0:
		err = fmt.Errorf("there are draws, but no chain in %s", l.chainName)
	case last.Index > blocks:
		err = fmt.Errorf("the last draw is of block %d, but %s ends with block %d", last.Index, l.chainName, blocks-1)
	default:
		err = fmt.Errorf("these are draws of another chain than %s", l.chainName)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; put back the chain of these draws, or move the draws away", l.drawsName, err)
	}
	// A block is saved after its record. So if the head is the block of the last record, a partial record has no block.
	isHead := last.Index == blocks-1 && (last.Index == 0 || last.IsAnnounced) && len(chainEnd.text) == 0
	if err = l.endLine(l.chain, l.chainName, chainEnd, false); err == nil {
		err = l.endLine(l.draws, l.drawsName, drawsEnd, isHead)
	}
	return last, err
}

// readChain calls next with each line of a chain file, until ctx is canceled. It returns the partial line, on which it
// has decided. It shows progress. The error names the line.
func readChain(ctx context.Context, title string, file *io.SectionReader, lines *linefile.Scanner,
	next func(line []byte) error) (end partialLine, err error) {
	progress := console.NewProgress(os.Stderr, title, file.Size())
	defer progress.Done()
	for lines.Scan() && ctx.Err() == nil {
		if err := next(lines.Bytes()); err != nil {
			return end, fmt.Errorf("line %d: %w", lines.Number(), err)
		}
		progress.Add(len(lines.Bytes()) + 1)
	}
	if err = cmp.Or(lines.Err(), ctx.Err()); err != nil {
		return end, err
	}
	_, end.text, err = linefile.End(file, linefile.MaxLine)
	if err = cmp.Or(err, end.decide(lines.Number() == 0, next)); err != nil {
		err = fmt.Errorf("line %d: %w", lines.Number()+1, err)
	}
	return end, err
}

// lastDraw decodes the last record of a draws file, which may be the partial line. It fails if the last line is neither
// a record nor the start of one.
func lastDraw(name string, file *io.SectionReader) (last *LastDraw, end partialLine, err error) {
	last = &LastDraw{Decoded: &draw.Decoded{Outcome: draw.Outcome{Hash: draw.None}}}
	decode := func(line []byte) error {
		decoded, err := draw.Decode(line)
		if err != nil {
			return fmt.Errorf("not a draw record: %w", err)
		}
		last.Decoded = decoded
		return nil
	}
	line, partial, err := linefile.End(file, draw.MaxRecord)
	if err == nil && line != nil {
		err = decode(line)
	}
	end.text = partial
	if err = cmp.Or(err, end.decide(line == nil, decode)); err != nil {
		err = fmt.Errorf("%s: last line: %w; repair the file, or move it away and leave the chain", name, err)
	}
	return last, end, err
}

// partialLine is what follows the last newline of a file.
type partialLine struct {
	text   []byte
	isNext bool // it is the next line, which lacks only its newline
}

// decide sets isNext. It fails if the partial line must not be removed. The first line of a file begins as both files
// do, unless zeros end it early, as after a power cut.
func (p *partialLine) decide(isFirst bool, next func(line []byte) error) error {
	if len(p.text) == 0 {
		return nil
	}
	const begin = `{"Index":`
	got := strings.TrimRight(string(p.text[:min(len(p.text), len(begin))]), "\x00")
	err := next(p.text)
	switch p.isNext = err == nil; {
	case p.isNext:
		return nil
	case next(p.text[:len(p.text)-1]) == nil: // a complete line plus one byte may have been announced
		return errors.New("its newline is corrupt")
	case isFirst && (bytes.IndexByte(p.text, '}') >= 0 || !strings.HasPrefix(begin, got)):
		return fmt.Errorf("no newline, and not how such a file begins: %w", err)
	}
	return nil
}

// report says on stderr whether Verify counts the partial line of a file, if there is one.
func (p *partialLine) report(stderr io.Writer, name string) {
	if p.isNext {
		fmt.Fprintf(stderr, "%s: counting the last line, which only lacks its newline\n", name)
	} else if len(p.text) > 0 {
		fmt.Fprintf(stderr, "%s: ignoring a partial last line\n", name)
	}
}

// endLine completes the partial line of a file, if there is one and it is the next line, or else removes it.
func (l *Ledger) endLine(file *linefile.File, name string, end partialLine, neverAnnounced bool) error {
	if len(end.text) == 0 {
		return nil
	}
	what := "removing a partial last line"
	remark := "a crash while saving leaves such a line; if you edited the file, put both files back"
	switch {
	case end.isNext:
		what, remark = "adding the missing newline to the last line", "it is complete"
	case neverAnnounced:
		remark = "it was never announced"
	}
	text, size := console.Quote(string(end.text[:min(len(end.text), 60)]), 60), console.Plural(len(end.text), "byte")
	l.log.Printf("%s: %s, %s (%s); %s", name, what, text, size, remark)
	if end.isNext {
		return file.CompletePartial(end.text)
	}
	return file.DropPartial()
}

// Verify checks a chain file and, unless drawsName is empty, its draws file. They may be in use. next is as in Load,
// and also calls CheckBlock. As in Load, a partial line counts if it is the next line. Verify shows the results on
// stdout, and what it makes of partial lines on stderr.
func Verify(chainName, drawsName string, stdout, stderr io.Writer,
	next func(line []byte, records *draw.Records) (hash string, err error)) error {
	draws, chain, err := linefile.OpenSnapshots(cmp.Or(drawsName, os.DevNull), chainName)
	if err != nil {
		return err
	}
	defer chain.Close()
	defer draws.Close()
	_, drawsEnd, endErr := lastDraw(drawsName, draws.SectionReader)
	drawsReader := io.Reader(draws)
	if drawsEnd.isNext {
		drawsReader = io.MultiReader(draws, strings.NewReader("\n"))
	}
	records, blocks, head := draw.NewRecords(drawsReader), 0, ""
	add := func(line []byte) error {
		hash, err := next(line, records)
		if err == nil {
			blocks, head = blocks+1, hash
		}
		return err
	}
	lines := linefile.NewScanner(chain, linefile.MaxLine)
	chainEnd, err := readChain(context.Background(), "verifying "+chainName, chain.SectionReader, lines, add)
	if err == nil && head == "" {
		err = errors.New("no genesis block")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", chainName, err)
	}
	if endErr == nil {
		drawsEnd.report(stderr, drawsName)
	}
	chainEnd.report(stderr, chainName)
	fmt.Fprintf(stdout, "ok: %s, head %s\n", console.Plural(blocks, "block"), head)
	if err := records.CheckEnd(); err != nil {
		return fmt.Errorf("%s: %w", drawsName, err)
	}
	if endErr != nil {
		return endErr
	}
	if drawsName != "" {
		fmt.Fprintf(stdout, "ok: %s", records.Summary())
	}
	return nil
}

// Append saves the line of a block and waits for it. It must not be called after Save.
func (l *Ledger) Append(block []byte) error { return l.chain.Append(block) }

// Save starts to save e and returns immediately. The previous entry must have been saved.
func (l *Ledger) Save(e Entry) {
	l.saving.Go(func() {
		var lastLogged time.Time
		for err := l.save(&e); err != nil; err = l.save(&e) {
			if now := time.Now(); now.Sub(lastLogged) >= logInterval {
				l.log.Printf("cannot save block %d: %v; retrying every second", e.Index, err)
				lastLogged = now
			}
			select {
			case <-time.After(retryInterval):
			case <-l.ctx.Done():
				return
			}
		}
		if !lastLogged.IsZero() {
			l.log.Printf("saved block %d after all", e.Index)
		}
		l.Saved <- struct{}{}
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

// save tries to save what is not saved yet of e: its record and then its block.
func (l *Ledger) save(e *Entry) error {
	if e.Record != nil {
		if err := l.saveRecord(e.Record); err != nil {
			return err
		}
		e.Record = nil
	}
	err := l.chain.Append(e.Block)
	if errors.Is(err, linefile.ErrChanged) {
		err = fmt.Errorf("%w; if you moved it, move it back; otherwise restart the server to verify it", err)
	}
	return err
}

// saveRecord saves the record of a draw, if need be in another draws file of that name. If that is one of another game,
// it stays unchanged. The record may be in it already: the file may have been moved during the sync, and back.
func (l *Ledger) saveRecord(record []byte) error {
	changed := l.draws.Append(record)
	if !errors.Is(changed, linefile.ErrChanged) {
		return changed
	}
	l.draws.Close()
	draws, err := linefile.Open(l.drawsName)
	if err != nil {
		return fmt.Errorf("%w; make it a file that the server may write, or move it away", err)
	}
	last, end, err := lastDraw(l.drawsName, draws.Reader())
	isSaved := bytes.Equal(linefile.Encode(last.Record), record)
	namesLast := bytes.Contains(record, []byte(last.Outcome.Hash)) // as the draw before
	if err == nil && last.Index > 0 && !isSaved && !namesLast {
		err = fmt.Errorf("%s: the draw of block %d, the last one, is not the one before this draw; put back the draws of "+
			"this game, or move the file away", l.drawsName, last.Index)
	}
	if err == nil {
		err = l.endLine(draws, l.drawsName, end, false)
	}
	if err != nil {
		draws.Close()
		return err
	}
	l.draws = draws
	l.log.Printf("%v; reopened it, new draws go there", changed)
	if isSaved {
		return nil
	}
	return l.draws.Append(record)
}
