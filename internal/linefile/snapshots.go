package linefile

import (
	"io"
	"os"
)

// OpenSnapshots opens both files as of one moment, even if they are in use: while it opens them, the first does not grow.
func OpenSnapshots(first, second string) (a, b io.ReadCloser, err error) {
	for {
		before, err := os.Stat(first)
		if err != nil {
			return nil, nil, err
		}
		if a, err = OpenSnapshot(first); err != nil {
			return nil, nil, err
		}
		if b, err = OpenSnapshot(second); err != nil {
			a.Close()
			return nil, nil, err
		}
		after, err := os.Stat(first)
		if err == nil && os.SameFile(before, after) && before.Size() == after.Size() {
			return a, b, nil
		}
		a.Close()
		b.Close()
	}
}
