package command

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/mapper"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/structpb"
)

// checkFailures lists everything wrong with the properties of one of the input structs. A property that is not known
// yet is checked when it is.
func checkFailures[T any](s *structpb.Struct) []*pulumirpc.CheckFailure {
	all, err := plugin.UnmarshalProperties(s, plugin.MarshalOptions{KeepUnknowns: true, SkipNulls: true})
	if err != nil {
		return []*pulumirpc.CheckFailure{{Reason: err.Error()}}
	}
	var c checker
	known := knownIn(all, "", &c.pending)
	var target T
	c.misfits("", mapper.New(&mapper.Opts{CustomDecoders: mapper.Decoders{
		reflect.TypeFor[Connection](): nested[Connection](&c, "connection."),
		reflect.TypeFor[Endpoint]():   nested[Endpoint](&c, "connection.proxy."),
	}}).Decode(known, &target))
	if logging, ok := known["logging"].(string); ok && !slices.Contains(loggingValues, Logging(logging)) {
		c.fail("logging", fmt.Sprintf("logging is %q; it must be one of %q", logging, loggingValues))
	}
	slices.SortFunc(c.failures, func(a, b *pulumirpc.CheckFailure) int { return cmp.Compare(a.Property, b.Property) })
	return c.failures
}

// checker collects failures. Its zero value is ready to use.
type checker struct {
	pending  []string // the paths of what is not known yet
	failures []*pulumirpc.CheckFailure
}

// fail adds the first failure of a path.
func (c *checker) fail(path, reason string) {
	failed := slices.ContainsFunc(c.failures, func(f *pulumirpc.CheckFailure) bool { return f.Property == path })
	if !failed && !slices.Contains(c.pending, path) {
		c.failures = append(c.failures, &pulumirpc.CheckFailure{Property: path, Reason: reason})
	}
}

// misfits adds the properties below prefix that do not fit their struct.
func (c *checker) misfits(prefix string, err mapper.MappingError) {
	if err == nil {
		return
	}
	for _, failure := range err.Failures() {
		if field, ok := failure.(mapper.FieldError); ok {
			c.fail(prefix+field.Field(), field.Reason())
		} else {
			c.fail("", failure.Error())
		}
	}
}

// nested decodes the object below prefix. Its failures are named one by one, which the mapper does not do.
func nested[T interface {
	unusable(fail func(option, reason string))
}](c *checker, prefix string) mapper.Decoder {
	return func(m mapper.Mapper, object map[string]any) (any, error) {
		var target T
		c.misfits(prefix, m.Decode(object, &target))
		target.unusable(func(option, reason string) { c.fail(prefix+option, reason) })
		return target, nil
	}
}
