package ledger

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/draw"
	"proofofstake/internal/linefile"
)

const block0, block1, record = `{"Index":0,"a":1}`, `{"Index":1,"a":1}`, `{"Index":1,"b":1}`

// hash returns what passes for a hash in these tests, such as that of block 1.
func hash(i int) string { return strings.Repeat(strconv.Itoa(i), 64) }

// drawLine returns the record of a draw, given the index of its block, and which hashes the blocks have.
func drawLine(index, prevBlock, block int) string {
	d := draw.New(hash(prevBlock), draw.None)
	d.Add(draw.Entry{Name: "alice", Tickets: 1, Note: "72"})
	return string(draw.NewRecord(index, hash(block), d.Outcome(), d)) + "\n"
}

// files are the names of a chain file, a draws file and a log.
type files struct{ chain, draws, log string }

// newFiles writes a chain file and a draws file in a directory of the test.
func newFiles(t *testing.T, chain, draws string) files {
	dir := t.TempDir()
	f := files{filepath.Join(dir, "chain"), filepath.Join(dir, "draws"), filepath.Join(dir, "log")}
	check(t, os.WriteFile(f.chain, []byte(chain), 0o644), os.WriteFile(f.draws, []byte(draws), 0o644))
	return f
}

// check ends the test if there is an error.
func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// want checks what a file contains.
func want(t *testing.T, name, content string) {
	t.Helper()
	if got, err := os.ReadFile(name); string(got) != content {
		t.Errorf("%s is %q (%v), want %q", name, got, err, content)
	}
}

// load opens the files and loads the chain, whose blocks are block0 and block1.
func (f files) load(t *testing.T, ctx context.Context) (*Ledger, *LastDraw, error) {
	logFile, err := os.Create(f.log)
	check(t, err)
	t.Cleanup(func() { logFile.Close() })
	l, err := Open(f.chain, f.draws, log.New(logFile, "", 0))
	check(t, err)
	blocks := []string{block0, block1, "end"}
	last, err := l.Load(ctx, func(line []byte) (string, error) {
		if string(line) != blocks[0] {
			return "", errors.New("not a block")
		}
		blocks = blocks[1:]
		return hash(2 - len(blocks)), nil
	})
	return l, last, err
}

// TestLoad loads files that end in a partial line. It is completed or dropped, unless there is an error.
func TestLoad(t *testing.T) {
	const complete, genesis, start = block0 + "\n" + block1 + "\n", block0 + "\n", `{"Index":`
	const dropped, completed, notGenesis = "(9 bytes)", "missing newline after line ", "chain: line 1: no newline, and not"
	record := drawLine(1, 0, 1)
	for _, test := range []struct {
		chain, draws, wantChain, wantDraws string
		canceled                           bool
		message                            string // the error, or in the log
	}{
		{complete, record, complete, record, false, ""},
		{genesis + block1, "", complete, "", false, completed + "2"},
		{block0, "", genesis, "", false, completed + "1"},
		{genesis + start, record + start, genesis, record, false, dropped},
		{start, "", "", "", false, dropped},
		{block0[:8] + "\x00", block0[:8] + "\x00", "", "", false, dropped},
		{genesis + block1 + "x", start, genesis + block1 + "x", start, false, "chain: line 2: its newline is corrupt"},
		{block0 + "x", "", block0 + "x", "", false, "chain: line 1: its newline is corrupt"},
		{"a thesis", start, "a thesis", start, false, notGenesis},
		{block0 + " " + block1, "", block0 + " " + block1, "", false, notGenesis},
		{"x\n" + start, start, "x\n" + start, start, false, "chain: line 1: not a block"},
		{genesis, "a thesis", genesis, "a thesis", false, "draws: not a draws file"},
		{complete, start, complete, start, true, "chain: interrupted"},
		{genesis + block1, "", genesis + block1, "", true, "chain: interrupted"},
		{block0, "", block0, "", true, "chain: interrupted"},
	} {
		synctest.Test(t, func(t *testing.T) { // so that nothing can hang
			f, ctx := newFiles(t, test.chain, test.draws), t.Context()
			if test.canceled {
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				cancel()
			}
			l, _, err := f.load(t, ctx)
			l.Close()
			l.Close()
			logged, _ := os.ReadFile(f.log)
			if isError := strings.Contains(test.message, ": "); (err != nil) != isError ||
				!strings.Contains(fmt.Sprint(string(logged), err), test.message) {
				t.Errorf("%q: error %v, log %q, want %q", test.chain, err, logged, test.message)
			}
			want(t, f.chain, test.wantChain)
			want(t, f.draws, test.wantDraws)
		})
	}
}

// TestLastDraw loads files with a draw that belongs to the chain or does not. In the latter case they stay unchanged.
func TestLastDraw(t *testing.T) {
	const complete, start = block0 + "\n" + block1 + "\n", `{"Index":`
	for _, test := range []struct{ chain, draws, want string }{
		{complete, "", "0 false none"},
		{complete, drawLine(1, 0, 1), "1 true "},
		{complete, drawLine(1, 0, 1) + drawLine(2, 1, 2), "2 false "},
		{complete, drawLine(1, 0, 5), "1 false "}, // and then a block without a draw record
		{complete, drawLine(2, 0, 2), "draws: these are draws of another chain than chain; "},
		{complete, drawLine(1, 5, 1), "draws: these are draws of another chain than chain; "},
		{complete, drawLine(3, 1, 3), "draws: the last draw is of block 3, but chain ends with block 1; "},
		{"", drawLine(1, 0, 1), "draws: there are draws, but chain is empty; put back the chain of these draws, or move "},
		{complete, "{}\n", "draws: last line: not canonical JSON: "},
	} {
		f := newFiles(t, test.chain+start, test.draws+start)
		l, last, err := f.load(t, t.Context())
		l.Close()
		got := ""
		if err == nil {
			got = fmt.Sprintf("%d %t %s", last.Index, last.IsAnnounced, last.Outcome.Hash)
		} else {
			got = strings.ReplaceAll(err.Error(), filepath.Dir(f.chain)+"/", "")
			want(t, f.chain, test.chain+start)
			want(t, f.draws, test.draws+start)
		}
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("%q, %q: got %s, want %s", test.chain, test.draws, got, test.want)
		}
	}
}

// TestSave saves a block while one of the files is displaced by a directory. The record is saved first, and once. The
// ledger retries every second and logs the reason every minute, until the file is restored or Cancel is called.
func TestSave(t *testing.T) {
	for _, displaceChain := range []bool{true, false} {
		for _, cancel := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := newFiles(t, block0+"\n", "")
				l, _, err := f.load(t, t.Context())
				check(t, err)
				defer l.Close()
				name, draws := f.draws, ""
				if displaceChain {
					name, draws = f.chain, record+"\n"
				}
				wantLogged := func(text string, count int) {
					t.Helper()
					synctest.Wait()
					if logged, err := os.ReadFile(f.log); strings.Count(string(logged), text) != count {
						t.Errorf("want %q %d times in the log %q (%v)", text, count, logged, err)
					}
				}
				check(t, os.Rename(name, name+".away"), os.Mkdir(name, 0o755))
				l.Save(Entry{Index: 1, Record: []byte(record), Block: []byte(block1)})
				time.Sleep(59500 * time.Millisecond)
				wantLogged("cannot save block 1: ", 1)
				time.Sleep(2 * time.Second)
				wantLogged("cannot save block 1: ", 2)
				wantLogged("move it back; otherwise restart", strings.Count(draws, "\n")*2)
				check(t, os.Remove(name), os.Rename(name+".away", name))
				if cancel {
					l.Cancel()
					time.Sleep(time.Minute)
				} else {
					time.Sleep(499 * time.Millisecond)
				}
				want(t, f.chain, block0+"\n")
				want(t, f.draws, draws)
				wantLogged("saved block 1 after all", len(l.Saved))
				if cancel {
					return
				}
				time.Sleep(time.Millisecond)
				<-l.Saved
				want(t, f.chain, block0+"\n"+block1+"\n")
				want(t, f.draws, record+"\n")
				wantLogged("saved block 1 after all", 1)

				check(t, os.Remove(f.draws)) // which is allowed
				l.Save(Entry{Index: 2, Block: []byte("two"), Record: []byte("2")})
				<-l.Saved
				l.Save(Entry{Index: 3, Block: []byte("three")})
				<-l.Saved
				want(t, f.chain, block0+"\n"+block1+"\ntwo\nthree\n")
				want(t, f.draws, "2\n")
				wantLogged("moved; reopened it, new draws go there\n", 1)
			})
		}
	}
}

// TestOpen opens files that are in use. The error names the setting. A file that was opened before is closed again.
func TestOpen(t *testing.T) {
	used, free := newFiles(t, "", ""), newFiles(t, "", "")
	l, _, err := used.load(t, t.Context())
	check(t, err)
	for want, f := range map[string]files{
		"CHAIN_FILE=": {chain: used.chain, draws: free.draws},
		"DRAWS_FILE=": {chain: free.chain, draws: used.draws},
	} {
		_, err := Open(f.chain, f.draws, nil)
		if !errors.Is(err, linefile.ErrInUse) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	l.Close()
	for _, f := range []files{used, free, {log: used.log}} {
		l, _, err := f.load(t, t.Context())
		check(t, err, l.Append([]byte(block0)))
		l.Close()
	}
}
