package linefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Decode reads the JSON of a line into v, which is a pointer. A value has one spelling in a file, that of encoding/json:
// what is written otherwise is an error, so that no byte of a line can be changed unnoticed.
func Decode(line []byte, v any) error {
	err := json.Unmarshal(line, v)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) && strings.HasPrefix(wrong.Value, "number ") {
		return fmt.Errorf("bad JSON: %s: the %.60s is no whole number of at most %d bits, which is what this build of the program takes",
			wrong.Field, wrong.Value, strconv.IntSize)
	}
	if err != nil {
		return fmt.Errorf("bad JSON: %w", err)
	}
	if again, err := json.Marshal(v); err != nil || string(again) != string(line) {
		return fmt.Errorf("bad JSON: it should be %.200s", again)
	}
	return nil
}
