package input

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDecode(t *testing.T) {
	type thing struct {
		Name string `json:"name"`
	}
	for _, c := range []struct{ input, problem string }{
		{`[{"name":"a"}]`, ""},
		{" [ ] \n", ""},
		{"", "there is none: JSON is needed"},
		{" \n", "there is none: JSON is needed"},
		{"null", "there is none: JSON is needed"},
		{`[{"name":"a","nmae":"b"}]`, `json: unknown field "nmae"`},
		{`[{"name":1}]`, "json: cannot unmarshal number into Go struct field"},
		{`[{"name":"a"}] []`, "something follows the JSON value"},
		{`[{"name":"a"}]]`, "something follows the JSON value"},
		{`[{"name":"a"}`, "unexpected EOF"},
	} {
		var things []thing
		err := Decode(strings.NewReader(c.input), &things)
		if c.problem == "" && err != nil ||
			c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
			t.Errorf("%q: got %v, want %q", c.input, err, c.problem)
		}
	}
	var things []thing
	if err := Decode(strings.NewReader(`[{"name":"a"}]`), &things); !reflect.DeepEqual(things, []thing{{"a"}}) {
		t.Errorf("got %+v, %v", things, err)
	}
	broken := errors.New("the host went away")
	if err := Decode(iotest.ErrReader(broken), &things); !errors.Is(err, broken) {
		t.Errorf("a broken input: %v", err)
	}
}
