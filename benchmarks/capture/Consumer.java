import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.JsonByteArray;
import java.io.FileOutputStream;
import java.io.FileReader;
import java.io.OutputStream;
import java.util.List;
import java.util.Properties;

/** Debezium's embedded engine; every change is one line of JSON in a file. Arguments: properties, file. */
public final class Consumer {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader reader = new FileReader(arguments[0])) {
            properties.load(reader);
        }
        OutputStream out = new FileOutputStream(arguments[1]);
        DebeziumEngine<ChangeEvent<byte[], byte[]>> engine = DebeziumEngine.create(JsonByteArray.class)
            .using(properties)
            .using((success, message, error) -> {
                System.err.println("ended: " + message);
                if (error != null) {
                    error.printStackTrace();
                }
            })
            .notifying((List<ChangeEvent<byte[], byte[]>> events, DebeziumEngine.RecordCommitter<ChangeEvent<byte[], byte[]>> committer) ->
                write(out, events, committer))
            .build();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(engine)));
        engine.run();
        System.exit(1);
    }

    /** All lines of a batch with one write. */
    private static void write(
            OutputStream out,
            List<ChangeEvent<byte[], byte[]>> events,
            DebeziumEngine.RecordCommitter<ChangeEvent<byte[], byte[]>> committer) throws InterruptedException {
        try {
            int size = 0;
            for (ChangeEvent<byte[], byte[]> event : events) {
                size += event.value() == null ? 0 : event.value().length + 1;
            }
            byte[] lines = new byte[size];
            int place = 0;
            for (ChangeEvent<byte[], byte[]> event : events) {
                byte[] value = event.value();
                if (value != null) {
                    System.arraycopy(value, 0, lines, place, value.length);
                    place += value.length;
                    lines[place++] = '\n';
                }
                committer.markProcessed(event);
            }
            out.write(lines);
            committer.markBatchFinished();
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    private static void close(DebeziumEngine<?> engine) {
        try {
            engine.close();
        } catch (Exception ignored) {
            // it was ended from outside
        }
    }
}
