package ports

import (
	"os"
	"testing"

	"gvisor-k3s/host/internal/isolated"
)

func TestMain(m *testing.M) { isolated.Main(m) }

func TestEphemeral(t *testing.T) {
	for _, c := range []struct {
		all        string
		want, half Range
	}{
		{"32768 60999", Range{32768, 60999}, Range{46884, 60999}},
		{"1024\t65535", Range{1024, 65535}, Range{33280, 65535}},
		{"40000 40001", Range{40000, 40001}, Range{40001, 40001}},
	} {
		if err := os.WriteFile(setting, []byte(c.all), 0); err != nil {
			t.Fatal(err)
		}
		got, err := Ephemeral()
		if err != nil || got != c.want || got.UpperHalf() != c.half {
			t.Errorf("%s: got %v, %v, and half of it is %v", c.all, got, err, got.UpperHalf())
		}
	}
}
