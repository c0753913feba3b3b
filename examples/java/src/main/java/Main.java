import com.google.gson.Gson;
import com.pulumi.Context;
import com.pulumi.automation.LocalWorkspace;
import com.pulumi.core.Output;
import com.pulumi.gvisork3s.Cluster;
import com.pulumi.gvisork3s.ClusterArgs;
import com.pulumi.gvisork3s.inputs.NodeOptionsArgs;
import com.pulumi.gvisork3s.inputs.SandboxOptionsArgs;
import java.util.Map;

/** Brings a control plane up by the SDK for Java, prints what it is told of it, and takes it down. */
public final class Main {
  public static void main(String[] args) throws Exception {
    String name = args[0];
    try (var stack = LocalWorkspace.createOrSelectStack("languages", "test", context -> program(context, name))) {
      try {
        var outputs = stack.up().outputs();
        var kubeconfig = outputs.get("kubeconfig");
        System.out.println(new Gson().toJson(Map.of(
            "address", outputs.get("address").value(),
            "secret", kubeconfig.isSecret(),
            "kubeconfig", kubeconfig.value())));
      } finally {
        stack.destroy();
      }
    }
  }

  private static void program(Context context, String name) {
    var argument = Output.ofSecret("max-requests-inflight=300");
    var cluster = new Cluster(name, ClusterArgs.builder()
        .mode("control-plane")
        .sandbox(SandboxOptionsArgs.builder().memory("1Gi").build())
        .node(NodeOptionsArgs.builder().apiServerArgs(Output.all(argument)).build())
        .build());
    context.export("address", cluster.address());
    context.export("kubeconfig", cluster.kubeconfig());
  }
}
