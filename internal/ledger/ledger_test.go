package ledger

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/draw"
)

const block0, block1, record = `{"Index":0,"a":1}`, `{"Index":1,"a":1}`, `{"Index":1,"b":1}`

// hash returns the hash of a block in these tests.
func hash(index int) string { return strings.Repeat(strconv.Itoa(index), 64) }

// drawLine returns the record of a draw, given the index of its block, and which hashes the blocks have.
func drawLine(index, prevBlock, block int) string {
	d := draw.New(hash(prevBlock), draw.None)
	d.Add(draw.Entry{Name: "alice", Tickets: 1, Note: "72"})
	return string(draw.NewRecord(index, hash(block), d.Outcome(), d)) + "\n"
}

// load writes the files chain and draws in a new working directory. Then it opens them and loads the chain, whose
// blocks are block0 and block1. The log is the file log. It also gets the error of Load, if any.
func load(t *testing.T, ctx context.Context, chain, draws string) (*Ledger, *LastDraw) {
	t.Chdir(t.TempDir())
	os.WriteFile("chain", []byte(chain), 0o644)
	os.WriteFile("draws", []byte(draws), 0o644)
	logFile, _ := os.Create("log")
	t.Cleanup(func() { logFile.Close() })
	logger, blocks := log.New(logFile, "", 0), []string{block0, block1, "end"}
	l, err := Open("chain", "draws", logger)
	if err != nil {
		t.Fatal(err)
	}
	last, err := l.Load(ctx, func(line []byte) (string, error) {
		if string(line) != blocks[0] {
			return "", errors.New("not a block")
		}
		blocks = blocks[1:]
		return hash(2 - len(blocks)), nil
	})
	if err != nil {
		logger.Print("error: ", err)
	}
	return l, last
}

// want checks what the files contain, and how often a text is in the log. A displaced file counts as empty.
func want(t *testing.T, chain, draws, text string, count int) {
	t.Helper()
	synctest.Wait()
	gotChain, _ := os.ReadFile("chain")
	gotDraws, _ := os.ReadFile("draws")
	logged, _ := os.ReadFile("log")
	if string(gotChain) != chain || string(gotDraws) != draws || strings.Count(string(logged), text) != count {
		t.Errorf("got %q, %q, %q, want %q, %q, %d times %q", gotChain, gotDraws, logged, chain, draws, count, text)
	}
}

// TestLoad loads files that end in a partial line. It is completed or dropped, unless there is an error.
func TestLoad(t *testing.T) {
	const genesis, complete, start, thesis = block0 + "\n", block0 + "\n" + block1 + "\n", `{"Index":`, "a thesis"
	const dropped, completed = ": dropping a partial last line (9 bytes)", "chain: adding the missing newline after line "
	const corrupt, notGenesis = ": its newline is corrupt", "error: chain: line 1: no newline, and not the start"
	const interrupted = "error: chain: interrupted"
	records := drawLine(1, 0, 1)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range [][]string{ // chain, draws, log, and what both files contain then, unless they are unchanged
		{complete, records, ""}, {genesis, thesis, "error: draws: not a draws file"},
		{genesis + block1, "", completed + "2", complete, ""}, {block0, "", completed + "1", genesis, ""},
		{genesis + start, "", "chain" + dropped, genesis, ""}, {start, "", "chain" + dropped, "", ""},
		{genesis, records + start, "draws" + dropped, genesis, records},
		{block0[:8] + "\x00", start[:8] + "\x00", "chain" + dropped, "", ""},
		{genesis + block1 + "x", start, "error: chain: line 2" + corrupt}, {complete, start, interrupted},
		{block0 + "x", "", "error: chain: line 1" + corrupt}, {thesis, start, notGenesis},
		{block0 + " " + block1, "", notGenesis}, {"x\n" + start, start, "error: chain: line 1: not a block"},
		{genesis + block1, "", interrupted}, {block0, "", interrupted},
	} {
		synctest.Test(t, func(t *testing.T) { // so that nothing can hang
			ctx, wanted := t.Context(), append(row, row[:2]...)[3:]
			if row[2] == interrupted {
				ctx = canceled
			}
			l, _ := load(t, ctx, row[0], row[1])
			l.Close()
			want(t, wanted[0], wanted[1], row[2], 1) // an empty log contains "" once
			want(t, wanted[0], wanted[1], "error: ", strings.Count(row[2], "error: "))
		})
	}
}

// TestLastDraw loads files with a draw that belongs to the chain or does not. In the latter case they stay unchanged.
func TestLastDraw(t *testing.T) {
	const complete, start = block0 + "\n" + block1 + "\n", `{"Index":`
	const otherChain = "error: draws: these are draws of another chain than chain; "
	for _, row := range [][3]string{ // chain, draws, what the last draw is or what the log says
		{complete, "", "0 false none"}, {complete, drawLine(1, 0, 1), "1 true "},
		{complete, drawLine(1, 0, 1) + drawLine(2, 1, 2), "2 false "},
		{complete, drawLine(1, 0, 5), "1 false "}, // and then a block without a draw record
		{complete, drawLine(2, 0, 2), otherChain}, {complete, drawLine(1, 5, 1), otherChain},
		{complete, drawLine(3, 1, 3), "error: draws: the last draw is of block 3, but chain ends with block 1; "},
		{"", drawLine(1, 0, 1), "error: draws: there are draws, but no chain in chain; put back the chain of these "},
		{complete, "{}\n", "error: draws: last line: not canonical JSON: "},
	} {
		synctest.Test(t, func(t *testing.T) {
			l, last := load(t, t.Context(), row[0]+start, row[1]+start)
			if l.Close(); strings.HasPrefix(row[2], "error: ") {
				want(t, row[0]+start, row[1]+start, row[2], 1)
			} else if got := fmt.Sprint(last.Index, last.IsAnnounced, " ", last.Outcome.Hash); !strings.HasPrefix(got, row[2]) {
				t.Errorf("%q: got %s, want %s", row, got, row[2])
			}
		})
	}
}

// TestSave saves a block while one of the files is displaced by a directory. The record is saved first, and once. The
// ledger retries every second and logs the reason every minute, until the file is restored or Cancel is called. At the
// end, all files are closed.
func TestSave(t *testing.T) {
	const before, after = block0 + "\n", block0 + "\n" + block1 + "\ntwo\nthree\n"
	for name, early := range map[string]string{"chain": record + "\n", "draws": ""} { // the records saved meanwhile
		synctest.Test(t, func(t *testing.T) {
			l, _ := load(t, t.Context(), before, "")
			wantSaved := func() {
				t.Helper()
				select {
				case <-l.Saved:
				case <-time.After(10 * time.Millisecond):
					t.Fatal("the entry is not saved")
				}
			}
			os.Rename(name, "away")
			os.Mkdir(name, 0o755)
			l.Save(Entry{Index: 1, Record: []byte(record), Block: []byte(block1)})
			time.Sleep(60500 * time.Millisecond)
			os.Remove(name)
			os.Rename("away", name)
			want(t, before, early, "cannot save block 1: ", 2)
			want(t, before, early, "move it back; otherwise restart", 2*strings.Count(early, "\n"))
			time.Sleep(499 * time.Millisecond)
			want(t, before, early, "after all", 0)
			wantSaved()
			want(t, before+block1+"\n", record+"\n", "saved block 1 after all", 1)
			os.Remove("draws") // which is allowed
			l.Save(Entry{Index: 2, Record: []byte("2"), Block: []byte("two")})
			wantSaved()
			l.Save(Entry{Index: 3, Block: []byte("three")})
			wantSaved()
			want(t, after, "2\n", "moved; reopened it, new draws go there\n", 1)
			os.Rename("chain", "away")
			l.Save(Entry{Index: 4, Block: []byte("four")})
			synctest.Wait()
			l.Cancel()
			os.Rename("away", "chain")
			time.Sleep(time.Minute)
			want(t, after, "2\n", "after all", 1)

			_, inUse := Open("free", "draws", nil) // opens and closes the first one
			l.Save(Entry{Index: 5, Block: []byte("five")})
			l.Close() // waits for the current attempt
			want(t, after+"five\n", "2\n", "after all", 1)
			l, err := Open("draws", "chain", nil)
			_, freeErr := Open("free", "", nil)
			if !strings.HasPrefix(fmt.Sprint(inUse), "DRAWS_FILE=") || err != nil || freeErr != nil {
				t.Error(inUse, err, freeErr)
			}
		})
	}
}
