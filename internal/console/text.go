package console

import (
	"fmt"
	"math/big"
	"time"
)

// Plural returns a count with its noun, such as "1 token" or "2 tokens". n is any integer or a *big.Int.
func Plural(n any, noun string) string {
	count := fmt.Sprint(n)
	if count != "1" {
		noun += "s"
	}
	return count + " " + noun
}

// Percent returns the share that part has of total, which is above 0, such as "33.3%".
func Percent(part int64, total *big.Int) string {
	share, _ := new(big.Rat).SetFrac(big.NewInt(part), total).Float64()
	return fmt.Sprintf("%.1f%%", 100*share)
}

// Duration returns d in whole seconds, such as "1m30s".
func Duration(d time.Duration) string {
	if d < time.Second {
		return "less than 1s"
	}
	return d.Round(time.Second).String()
}
